"""Agreement of methods: against scipy and by hand, on handmade grids."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from interpret.factpages.agreement import agreements, mean_agreements, verdict_of
from interpret.factpages.grids import FactGrids, peak
from interpret.factpages.sentences import agreement_sentence, interval, peak_sentence
from interpret.stats import average
from reference.fact_pages import made_cells

RANDOM = np.random.default_rng(0)


def grids(trace, attribution, ranks):
    return FactGrids.of(made_cells(hidden=trace, attribution=attribution, lens_rank=ranks))


def test_correlations_are_those_of_scipy_over_the_tokens_from_the_subject_on():
    trace, attribution = RANDOM.normal(size=(2, 4, 3))
    ranks = RANDOM.integers(1, 9, (4, 3))
    found = agreements(grids(trace, attribution, ranks))
    assert [(one.first, one.second) for one in found[:3]] == [
        ("trace", "attribution"),
        ("trace", "lens"),
        ("attribution", "lens"),
    ]
    for one in found:
        rows = slice(1, 3 if one.among == "subject" else 4)  # made_cells: the subject is tokens 1 and 2
        scores = {"trace": trace, "attribution": attribution, "lens": -ranks}
        first, second = (scores[name][rows].ravel() for name in (one.first, one.second))
        assert one.correlation == pytest.approx(spearmanr(first, second).statistic)
        assert one.n_cells == len(first)


def test_scores_that_are_not_finite_are_left_out():
    trace = np.arange(12.0).reshape(4, 3)
    trace[1, 0], trace[3, 2] = math.nan, math.inf
    found = agreements(grids(trace, np.arange(12.0).reshape(4, 3), np.full((4, 3), 5)))
    assert (found[0].n_cells, found[0].correlation) == (7, pytest.approx(1.0))
    assert (found[0].first_peak.token, found[0].first_peak.layer) == (3, 1)
    assert math.isnan(found[1].correlation)
    assert found[1].verdict == "cannot be compared"


@pytest.mark.parametrize(
    ("correlation", "verdict"),
    [(1, "agree"), (0.7, "agree"), (0.69, "agree in part"), (0.3, "agree in part"), (0.29, "disagree")]
    + [(-0.29, "disagree"), (-0.3, "contradict each other"), (-1, "contradict each other")],
)
def test_a_correlation_is_said_in_words(correlation, verdict):
    assert verdict_of(correlation) == verdict


def test_peaks_coincide_only_at_the_same_cell():
    flat = np.zeros((4, 3))
    one, other, elsewhere = (flat.copy() for _ in range(3))
    one[2, 1] = other[2, 2] = elsewhere[3, 1] = 1
    ranks = np.full((4, 3), 9)
    ranks[2, 1] = 1
    near, same, far = (agreements(grids(one, scores, ranks)) for scores in (other, one, elsewhere))
    assert peak_sentence(near[0], grids(one, other, ranks)).startswith(
        "Their peaks do not coincide (same token, 1 layer apart): causal tracing peaks at layer 1, token 2 “t2”, "
    )
    assert peak_sentence(same[0], grids(one, one, ranks)) == "Their peaks coincide: layer 1, token 2 “t2”."
    assert "(different tokens)" in peak_sentence(far[0], grids(one, elsewhere, ranks))
    assert same[1].same_peak  # the lens peaks where the rank is lowest
    assert agreement_sentence(same[0]).startswith("Causal tracing and attribution agree here: ")


def test_a_peak_before_the_subject_does_not_count():
    trace = np.zeros((4, 3))
    trace[0, 0], trace[3, 2] = 5, 1
    found = grids(trace, trace, np.full((4, 3), 1))
    assert (peak(found, "trace", "all").token, peak(found, "trace", "all").layer) == (3, 2)
    assert peak(found, "trace", "subject").token == 1
    nothing = grids(np.full((4, 3), math.nan), trace, np.full((4, 3), 1))
    assert peak(nothing, "trace", "all") is None
    assert agreements(nothing)[0].layers_apart is None


def test_means_over_facts_have_the_intervals_of_the_bootstrap():
    facts = [agreements(grids(*RANDOM.normal(size=(2, 4, 3)), RANDOM.integers(1, 9, (4, 3)))) for _ in range(5)]
    means = mean_agreements(facts)
    for number, mean in enumerate(means):
        own = average([fact[number].correlation for fact in facts])
        assert (mean.correlation.mean, mean.correlation.low) == (pytest.approx(own.mean), pytest.approx(own.low))
        assert mean.same_peak.mean == pytest.approx(np.mean([fact[number].same_peak for fact in facts]))
    assert interval(average([0.5])) == "+0.50"
