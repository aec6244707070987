import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, average_buckets, bucket_means, token_buckets
from interpret.stats import average

FIRST, MIDDLE, LAST_OF, NEXT, FURTHER, LAST = SCHEMES["rome"]


@pytest.mark.parametrize(
    ("n_tokens", "span", "rome", "kt"),
    [
        (  # a token in every bucket
            9,
            (1, 5),
            [None, FIRST, MIDDLE, MIDDLE, LAST_OF, NEXT, FURTHER, FURTHER, LAST],
            [None, FIRST, None, None, LAST_OF, FURTHER, FURTHER, FURTHER, LAST],
        ),
        (4, (0, 2), [FIRST, LAST_OF, NEXT, LAST], [FIRST, LAST_OF, FURTHER, LAST]),  # subject of two tokens
        (
            4,
            (0, 1),
            [LAST_OF, NEXT, FURTHER, LAST],
            [LAST_OF, FURTHER, FURTHER, LAST],
        ),  # subject of one token: last_subject
        (3, (0, 2), [FIRST, LAST_OF, LAST], [FIRST, LAST_OF, LAST]),  # the prompt's last token follows the subject
        (4, (1, 4), [None, FIRST, MIDDLE, LAST], [None, FIRST, None, LAST]),  # the subject is at the end of the prompt
        (2, (1, 2), [None, LAST], [None, LAST]),  # the same with one token
    ],
)
def test_each_token_has_the_bucket_of_its_place(n_tokens, span, rome, kt):
    assert token_buckets(n_tokens, span) == rome
    assert token_buckets(n_tokens, span, scheme="kt") == kt


@st.composite
def prompts(draw):
    """A number of tokens, and the span of a subject among them."""
    n_tokens = draw(st.integers(1, 12))
    start = draw(st.integers(0, n_tokens - 1))
    return n_tokens, (start, draw(st.integers(start + 1, n_tokens)))


@given(prompt=prompts())
def test_every_token_from_the_subject_on_is_in_one_bucket_of_rome(prompt):
    n_tokens, (start, end) = prompt
    names = token_buckets(n_tokens, (start, end))
    assert len(names) == n_tokens
    assert names[:start] == [None] * start
    assert set(names[start:]) <= set(SCHEMES["rome"])
    assert names[-1] == LAST
    for name in (FIRST, LAST_OF, NEXT, LAST):
        assert names.count(name) <= 1
    # In prompt order, so that the rows of tables have this order too.
    places = [SCHEMES["rome"].index(name) for name in names[start:]]
    assert places == sorted(places)


@given(prompt=prompts())
def test_the_schemes_differ_in_names_only(prompt):
    merged = {MIDDLE: None, NEXT: FURTHER}
    rome, kt = (token_buckets(*prompt, scheme=scheme) for scheme in ("rome", "kt"))
    assert [merged.get(name, name) for name in rome] == kt


# Three prompts and two layers, by hand. The buckets of kt, the means of each prompt's tokens below them:
#   first_subject      -      2, 20      4, 40    -> (2 + 4) / 2 = 3
#   last_subject     1, 10    3, 30        -      -> (1 + 3) / 2 = 2
#   further          5, 50      -          -      -> of the tokens 2, 4 and 9
#   last             7, 70    8, 80      6, 60    -> 7
THREE = [
    ([[1, 10], [2, 20], [4, 40], [9, 90], [7, 70]], (0, 1)),
    ([[2, 20], [3, 30], [8, 80]], (0, 2)),
    ([[99, 99], [4, 40], [6, 60]], (1, 3)),
]
NAN = [np.nan, np.nan]


def test_a_prompts_means_are_over_the_tokens_of_a_bucket():
    of_first, of_second, of_third = (bucket_means(effects, span, scheme="kt") for effects, span in THREE)
    np.testing.assert_array_equal(of_first, [NAN, [1, 10], [5, 50], [7, 70]])
    np.testing.assert_array_equal(of_second, [[2, 20], [3, 30], NAN, [8, 80]])
    np.testing.assert_array_equal(of_third, [[4, 40], NAN, NAN, [6, 60]])


def test_averages_are_over_prompts_that_have_the_bucket():
    found = average_buckets([effects for effects, _ in THREE], [span for _, span in THREE], scheme="kt")
    np.testing.assert_allclose(found.mean, [[3, 30], [2, 20], [5, 50], [7, 70]])
    assert found.n.tolist() == [[2, 2], [2, 2], [1, 1], [3, 3]]
    several = found.n > 1
    assert (found.low <= found.mean)[several].all()
    assert (found.mean <= found.high)[several].all()
    assert np.isnan([found.low, found.high])[:, ~several].all()


def test_a_bucket_of_no_prompt_is_nan():
    effects, spans = [effects for effects, _ in THREE], [span for _, span in THREE]
    found = average_buckets(effects, spans)
    middle = SCHEMES["rome"].index(MIDDLE)
    assert np.isnan([found.mean[middle], found.low[middle], found.high[middle]]).all()
    assert found.n[middle].tolist() == [0, 0]


def test_a_prompt_counts_once_however_many_tokens_it_has():
    long, short = [0.0] + [1.0] * 8 + [0.0], [0.0, 3.0, 0.0]
    found = average_buckets([long, short], [(0, 1), (0, 1)], scheme="kt")
    assert found.mean[SCHEMES["kt"].index(FURTHER)] == 2.0  # 11 / 9 if tokens were pooled


@pytest.mark.parametrize(
    ("n_tokens", "span", "scheme", "message"),
    [
        (3, (0, 1), "romes", "unknown bucket scheme 'romes'; did you mean 'rome'? Allowed: rome, kt"),
        (3, (2, 2), "rome", "the subject's span (2, 2) is not inside the prompt's 3 tokens"),
        (3, (-1, 2), "kt", "the subject's span (-1, 2) is not inside the prompt's 3 tokens"),
        (3, (1, 4), "kt", "the subject's span (1, 4) is not inside the prompt's 3 tokens"),
    ],
)
def test_what_is_no_place_in_a_prompt_is_an_error(n_tokens, span, scheme, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        token_buckets(n_tokens, span, scheme=scheme)


def test_each_prompt_needs_its_span():
    with pytest.raises(InputError, match="^there are 1 spans for 2 prompts: give one span per prompt$"):
        average_buckets([[1.0], [2.0]], [(0, 1)])


def test_the_interval_is_that_of_a_thousand_bootstrap_samples():
    values = np.random.default_rng(3).normal(size=(20, 2))
    found = average(values)
    times = np.random.default_rng(0).multinomial(20, np.full(20, 1 / 20), size=1000)
    np.testing.assert_allclose([found.low, found.high], np.quantile(times @ values / 20, [0.025, 0.975], axis=0))
