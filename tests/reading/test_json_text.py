import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.reading import file_key, is_unicode, numbered_lines, parse_json, read_json, read_text

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(value=PLAIN, ascii_only=st.booleans())
def test_json_is_read_as_python_reads_it(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse_json(text) == value
    assert parse_json("\ufeff" + text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "has the key 'c' twice in the object {'c': 1, 'c': 1}; keep one"),
        ("[" * 101 + "]" * 101, "is nested deeper than 100 levels; expected a few"),
        ("[" * 200_000, "is nested deeper than 100 levels; expected a few"),
        ('{"a": ' * 500 + "1" + "}" * 500, "is nested deeper than 100 levels; expected a few"),
        ("[" + "1" * 5000 + "]", "has a number with more digits than can be read"),
        ("[NaN]", "is not JSON: it has NaN; write null"),
        ("[1,]", "is not JSON: Expecting value: line 1 column 4 (char 3)"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
    ids=lambda text: str(text)[:12],
)
def test_what_is_not_read_is_named(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        parse_json(text)


def test_the_deepest_value_is_read():
    assert parse_json("[" * 100 + "]" * 100)


def test_only_a_line_feed_ends_a_line():
    text = '"a\u2028b"\r\n\n  \n"c\x0b\x1c\x85d"\n'
    assert list(numbered_lines(text)) == [(1, '"a\u2028b"\r'), (4, '"c\x0b\x1c\x85d"')]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": NaN}')
    assert read_text(tmp_path / "a.json", like="x.json") == '{"a": NaN}'
    assert list(read_json(tmp_path / "a.json", like="x.json")) == ["a"]


def test_halves_of_pairs_are_no_unicode():
    assert not is_unicode(parse_json(r'"\ud83d"'))
    assert is_unicode(parse_json(r'"\ud83d\ude00"'))


def test_names_that_a_file_system_may_confuse_have_one_key():
    assert file_key("Known_\u00c9") == file_key("known_e\u0301")
    assert file_key("known_1") != file_key("known_2")
