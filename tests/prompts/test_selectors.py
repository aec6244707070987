import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.prompts.selectors import select

BOUND = st.none() | st.integers(-12, 12)


@given(start=BOUND, stop=BOUND, step=BOUND.filter(lambda step: step != 0), count=st.integers(1, 10))
def test_a_slice_selects_what_python_slices(start, stop, step, count):
    words = ":".join("" if bound is None else str(bound) for bound in (start, stop, step))
    expected = list(range(count))[start:stop:step]
    if expected:
        assert select("layer", words, count) == expected
    else:
        with pytest.raises(InputError, match="selects nothing"):
            select("layer", words, count)


@given(count=st.integers(1, 10), data=st.data())
def test_indices_count_from_either_end_and_are_taken_once(count, data):
    chosen = data.draw(st.lists(st.integers(-count, count - 1), min_size=1))
    expected = list(dict.fromkeys(list(range(count))[index] for index in chosen))
    assert select("token", ",".join(map(str, chosen)), count) == expected


def test_names_mix_with_indices_in_the_order_written():
    assert select("token", "last, 1:3 ,0", 5, {"last": [4]}) == [4, 1, 2, 0]
    assert select("token", "all", 3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("5", "layer 5 does not exist; there are layers 0 to 4, or -5 to -1"),
        ("0,-6", "layer -6 does not exist; there are layers 0 to 4, or -5 to -1"),
        ("7:", "layer selector '7:' selects nothing; there are layers 0 to 4"),
        ("", "unknown layer selector ''; Allowed: all, an index, a slice such as 0:10:2"),
        ("al", "unknown layer selector 'al'; did you mean 'all'? Allowed: all, an index, a slice such as 0:10:2"),
        ("1,,2", "unknown layer selector ''; Allowed: all, an index, a slice such as 0:10:2"),
        ("1.5", "unknown layer selector '1.5'; Allowed: all, an index, a slice such as 0:10:2"),
        ("::0", "unknown layer selector '::0'; Allowed: all, an index, a slice such as 0:10:2"),
    ],
)
def test_what_selects_nothing_is_an_error(selector, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        select("layer", selector, 5)
