import re

import pytest

from interpret.errors import InputError
from interpret.reading import read_yaml


def read(folder, text):
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    return read_yaml(folder / "a.yaml", like="examples/trace.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: [x, 2.5, true, null]", {"a": 1, "b": ["x", 2.5, True, None]}),
        ("\ufeffa: 2024-01-31", {"a": "2024-01-31"}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1}\nc: {<<: *x, d: 2}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
        ("a: 0x1f\nb: 1_000", {"a": 31, "b": 1000}),
        ("", None),
    ],
)
def test_plain_values_are_read(tmp_path, text, value):
    assert read(tmp_path, text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1, b: 2}", "a.yaml: key 'b' occurs twice; keep one"),
        ("a: !!int abc", "a.yaml: line 1: 'abc' is not an integer"),
        ("\na: !!float x", "a.yaml: line 2: 'x' is not a number"),
        ("a: !!timestamp 2024-01-31", "a.yaml is not YAML: could not determine a constructor for the tag"),
        ("[" * 21 + "]" * 21, "a.yaml: line 1 is nested deeper than 20 levels; expected a few"),
        ("a: &x [*x]", "a.yaml: line 1: an alias repeats the value that contains it; write the value out"),
        ("- 1\n" * 6000, "a.yaml: line 5001: more than 5000 keys and values"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        read(tmp_path, text)


def test_an_alias_counts_as_the_value_it_repeats(tmp_path):
    value = "&a [" + ", ".join(["x"] * 99) + "]"
    assert len(read(tmp_path, f"[{value}{', *a' * 48}]")) == 49
    with pytest.raises(InputError, match="line 1: more than 5000 keys and values"):
        read(tmp_path, f"[{value}{', *a' * 50}]")
