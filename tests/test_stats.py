"""Averages with bootstrap intervals, compared with closed forms and with how often they cover the truth; and ranks."""

import numpy as np
import pandas as pd
import pytest

from interpret.errors import InputError
from interpret.stats import Average, average, rank_correlation


def test_an_average_ignores_prompts_without_the_effect():
    effects = [[0.1, np.nan, np.nan], [0.3, 0.5, np.nan], [0.2, 0.7, np.nan]]
    found = average(effects, seed=1)
    np.testing.assert_allclose(found.mean, [0.2, 0.6, np.nan])
    np.testing.assert_array_equal(found.n, [3, 2, 0])
    assert isinstance(found, Average)
    assert found.low[0] < 0.2 < found.high[0]
    assert np.isnan(found.low[2])
    assert np.isnan(found.high[2])


def test_the_mean_of_one_prompt_has_no_interval():
    found = average([[0.1, 0.4], [np.nan, 0.6]])
    np.testing.assert_array_equal(found.n, [1, 2])
    np.testing.assert_allclose(found.mean, [0.1, 0.5])
    assert np.isnan([found.low[0], found.high[0]]).all()
    np.testing.assert_allclose([found.low[1], found.high[1]], [0.4, 0.6])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    chance = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = average(chance.normal(0.3, 0.1, size=40), draws=300, confidence=0.9)
        covered += found.low < 0.3 < found.high
    assert 165 <= covered <= 195


def test_a_wider_confidence_gives_a_wider_interval_and_the_seed_decides():
    values = np.random.default_rng(0).normal(size=(30, 2))
    narrow, wide = average(values, confidence=0.5), average(values, confidence=0.99)
    assert (wide.low < narrow.low).all()
    assert (wide.high > narrow.high).all()
    assert np.array_equal(average(values, seed=3).low, average(values, seed=3).low)
    assert not np.array_equal(average(values, seed=3).low, average(values, seed=4).low)


def test_no_effects_have_no_average():
    with pytest.raises(InputError, match=r"^there are no effects to average$"):
        average([])


# ---------------------------------------------------------------------------------------------- rank correlation


def test_ranks_are_correlated_as_elsewhere_ties_included():
    chance = np.random.default_rng(0)
    for _ in range(20):
        first, second = chance.integers(0, 5, (4, 6)), chance.normal(size=(4, 6)).round(1)
        table = pd.DataFrame({"first": first.ravel(), "second": second.ravel()})
        assert rank_correlation(first, second) == pytest.approx(table.corr(method="spearman").iloc[0, 1])


def test_only_the_order_counts():
    values = np.random.default_rng(0).normal(size=(3, 4))
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1)


@pytest.mark.parametrize("grid", [[], [1.0], [2.0, 2.0]])
def test_there_is_no_rank_correlation_without_an_order(grid):
    assert np.isnan(rank_correlation(grid, grid))


def test_ranks_need_the_same_cells():
    with pytest.raises(InputError, match=r"^the arrays have shapes \(2,\) and \(3,\); expected equal shapes$"):
        rank_correlation([1, 2], [1, 2, 3])
