"""Hypothesis tests, compared with scipy on known samples and with plain counting."""

import math
import re
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from interpret.bench.experiment import Experiment
from interpret.bench.hypothesis import HypothesisTest, hypothesis_test
from interpret.errors import InputError

CHANCE = np.random.default_rng(0)
SAMPLES = {
    "apart": ([0.1, 0.2, 0.3], [0.9, 1.1, 1.0]),
    "near": (CHANCE.normal(0, 1, 20).tolist(), CHANCE.normal(0.5, 3, 12).tolist()),
    "two": ([1.0, 2.0], [1.5, 4.0]),
    "one constant": ([2.0, 2.0, 2.0], [1.0, 2.5, 2.0, 1.9]),
    "far": (CHANCE.normal(0, 1, 40).tolist(), CHANCE.normal(30, 1, 40).tolist()),
    "same mean": ([1.0, 2.0, 3.0], [2.0, 0.0, 4.0]),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_welch_is_scipys(name):
    null, alternative = SAMPLES[name]
    test = hypothesis_test(null, alternative, alpha=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # scipy, of a constant sample
        expected = stats.ttest_ind(alternative, null, equal_var=False)
    assert test.statistic == pytest.approx(expected.statistic, rel=1e-9, abs=1e-12)
    assert test.p_value == pytest.approx(expected.pvalue, rel=1e-7)
    assert test.degrees_of_freedom == pytest.approx(expected.df, rel=1e-9)
    assert test.rejected == (expected.pvalue <= 0.1)
    assert (test.null_n, test.alternative_n) == (len(null), len(alternative))
    assert (test.null_mean, test.alternative_mean) == pytest.approx((np.mean(null), np.mean(alternative)))


def test_pairs_are_compared_each_with_itself():
    null, alternative = np.array([0.0, 5.0, 9.0, 14.0, 22.0, 31.0]), np.array([1.0, 5.5, 11.0, 14.5, 22.0, 33.0])
    expected = stats.permutation_test(
        (alternative, null), lambda a, b: a.mean() - b.mean(), permutation_type="samples", n_resamples=np.inf
    )
    test = hypothesis_test(null, alternative, method="paired")
    assert test.p_value == pytest.approx(expected.pvalue) == 2 / 2**5
    assert test.statistic == pytest.approx(1)
    assert test.degrees_of_freedom is None
    assert hypothesis_test(null, alternative, method="permutation").p_value > 0.5


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_paired_p_values_do_not_depend_on_the_unit(unit):
    null, alternative = np.array(SAMPLES["near"][0][:12]), np.array(SAMPLES["near"][1])
    wanted = hypothesis_test(null, alternative, method="paired").p_value
    assert 0.01 < wanted < 1
    assert hypothesis_test(unit * null, unit * alternative, method="paired").p_value == wanted


@pytest.mark.parametrize("name", ["apart", "two", "one constant", "same mean"])
def test_all_permutations_of_small_samples_are_scipys(name):
    null, alternative = SAMPLES[name]
    expected = stats.permutation_test(
        (alternative, null), lambda a, b: abs(a.mean() - b.mean()), alternative="greater", n_resamples=np.inf
    )
    test = hypothesis_test(null, alternative, method="permutation")
    assert test.p_value == pytest.approx(expected.pvalue)
    assert test.statistic == pytest.approx(np.mean(alternative) - np.mean(null))
    assert test.degrees_of_freedom is None


def test_all_permutations_are_counted_one_by_one():
    null, alternative = [0.0, 1.0, 5.0], [2.0, 6.0]
    observed = abs(np.mean(alternative) - np.mean(null))
    dealt = [abs(np.mean(order[:2]) - np.mean(order[2:])) for order in permutations(alternative + null)]
    expected = np.mean([value >= observed - 1e-12 for value in dealt])
    assert hypothesis_test(null, alternative, method="permutation").p_value == pytest.approx(expected)


@pytest.mark.parametrize(("method", "ways"), [("permutation", math.comb(6, 3)), ("paired", 2**3)])
def test_all_permutations_are_counted_if_at_most_n_permutations(method, ways):
    p_value = hypothesis_test(*SAMPLES["apart"], method=method, n_permutations=ways).p_value
    assert p_value == pytest.approx(2 / ways)


def test_random_permutations_are_near_welch_and_depend_on_the_seed_alone():
    null, alternative = SAMPLES["near"]
    options = {"method": "permutation", "n_permutations": 4000}
    first, again, other = (hypothesis_test(null, alternative, seed=seed, **options).p_value for seed in (0, 0, 1))
    exact = stats.permutation_test(
        (alternative, null), lambda a, b: abs(a.mean() - b.mean()), alternative="greater", n_resamples=9999, rng=0
    ).pvalue
    assert first == again
    assert first != other
    assert first == pytest.approx(exact, abs=0.03)


def test_p_of_random_permutations_is_never_zero():
    null, alternative = SAMPLES["far"]
    test = hypothesis_test(null, alternative, method="permutation", n_permutations=99)
    assert test.p_value == 0.01


def test_the_effect_size_is_the_formula():
    null, alternative = (np.array(sample) for sample in SAMPLES["near"])
    n, m = len(null), len(alternative)
    pooled = math.sqrt(((n - 1) * null.var(ddof=1) + (m - 1) * alternative.var(ddof=1)) / (n + m - 2))
    expected = (alternative.mean() - null.mean()) / pooled * (1 - 3 / (4 * (n + m) - 9))
    assert hypothesis_test(null, alternative).hedges_g == pytest.approx(expected)


@pytest.mark.parametrize("method", ["welch", "permutation", "paired"])
def test_equal_constant_samples_are_not_significant(method):
    test = hypothesis_test([0.1] * 3, [0.1] * (3 if method == "paired" else 10), method=method)
    assert (test.p_value, test.rejected, test.hedges_g) == (1.0, False, 0.0)
    assert test.statistic == pytest.approx(0, abs=1e-15)


def test_different_constants_are_refused_by_welch_but_can_be_permuted():
    message = (
        "all null samples are 1.0 and all alternative samples 2.0: Welch's t-test needs a sample that varies; use "
        'method="permutation", and check whether the samples should be constant'
    )
    with pytest.raises(InputError, match=re.escape(message)):
        hypothesis_test([1.0] * 4, [2.0] * 4)
    test = hypothesis_test([1.0] * 4, [2.0] * 4, method="permutation")
    assert test.p_value == pytest.approx(2 / math.comb(8, 4))
    assert test.hedges_g == math.inf


WRONG = [
    (([1.0], [1.0, 2.0]), {}, "null has 1 number: a test needs at least 2 per sample"),
    (([1.0, 2.0], []), {}, "alternative has 0 numbers: a test needs at least 2 per sample"),
    (([1.0, 2.0], [1.0, math.nan]), {}, "alternative[1] is nan: a test needs finite numbers"),
    (([1.0, 2.0], [1.0, 3.0]), {"alpha": 5}, "alpha is 5: give a probability between 0 and 1, such as 0.05"),
    (
        ([1.0, 2.0], [1.0, 3.0]),
        {"method": "welsh"},
        "unknown method 'welsh'; did you mean 'welch'? Allowed: welch, permutation, paired",
    ),
    (
        ([1.0, 2.0], [1.0, 3.0, 4.0]),
        {"method": "paired"},
        "null has 2 numbers, alternative 3: a paired test needs equally many",
    ),
    (
        ([1.0, 2.0, 3.0], [1.0, 3.0]),
        {"method": "paired"},
        "null has 3 numbers, alternative 2: a paired test needs equally many",
    ),
    (([1.0, 2.0], [1.0, 3.0]), {"n_permutations": 0}, "n_permutations is 0; expected at least 1"),
]


@pytest.mark.parametrize(("samples", "options", "message"), WRONG)
def test_wrong_samples_are_refused(samples, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        hypothesis_test(*samples, **options)


# ---------------------------------------------------------------------------------------- tests of an experiment


@pytest.fixture
def exp(gpt2, tmp_path):
    return Experiment(gpt2, None, folder=tmp_path / "experiments")


def test_a_decorated_function_becomes_the_test(exp):
    def louder(sample, gain):
        return gain * sample + torch.tensor(1.0)

    @exp.test_hypothesis(alternative=louder, n_samples=5, alpha=0.2, method="permutation")
    def plain(sample, gain):
        """Say nothing."""
        return sample

    expected = hypothesis_test([0, 1, 2, 3, 4], [1, 4, 7, 10, 13], alpha=0.2, method="permutation")
    assert plain(3) == plain(gain=3) == expected
    assert isinstance(plain(3), HypothesisTest)
    assert (plain.__name__, plain.__doc__) == ("plain", "Say nothing.")


def test_two_functions_are_tested_at_once(exp):
    test = exp.test_hypothesis(lambda sample: sample, alternative=lambda sample: sample + 9, n_samples=6)
    assert test == hypothesis_test(range(6), range(9, 15))


def test_tools_can_be_used_in_what_is_tested(exp):
    @exp.use_tools("cache")
    def length(sample, cache):
        return cache([[5, 6 + sample]], "resid_post.0")["resid_post.0"].norm()

    test = exp.test_hypothesis(length, alternative=length, n_samples=3)
    assert (test.p_value, test.statistic, test.null_n) == (1.0, 0.0, 3)


def test_a_function_that_returns_no_number_is_named(exp):
    def words(sample):
        return "many" if sample else 1

    with pytest.raises(
        InputError, match=re.escape("words(1) returned str 'many': a tested function has to return one number per")
    ):
        exp.test_hypothesis(lambda sample: sample, alternative=words)


def test_a_single_sample_is_refused_before_the_functions_are_called(exp):
    with pytest.raises(InputError, match="n_samples is 1: a test needs at least 2 samples from each function"):
        exp.test_hypothesis(alternative=lambda sample: 1 / 0, n_samples=1)
