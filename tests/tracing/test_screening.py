"""Screening: exact values for the cells with the largest estimates, compared with full traces."""

import re

import numpy as np
import pytest

from interpret.errors import InputError
from interpret.stats import rank_correlation
from interpret.sweep import run_sweep
from interpret.tracing import exact as exact_tracing
from interpret.tracing.mediators import MEDIATORS, UNIT_MEDIATORS
from reference.estimates import MODELS, approximated, screened, traced


@pytest.mark.parametrize("kind", list(MODELS))
def test_exact_cells_of_a_screening_equal_those_of_a_full_trace(kind):
    found, exact, estimates = screened(MODELS[kind], share=0.12), traced(MODELS[kind]), approximated(MODELS[kind])
    for name, one in found.items():
        mask, start = one.result.exact, one.result.subject_span[0]
        assert mask[:start].all()  # nothing is restored there, and nothing is run
        assert mask[start:].sum() == 2 > 0.12 * mask[start:].size > 1
        assert one.result.method == "screened"
        np.testing.assert_allclose(one.result.sample_scores[:, mask], exact[name].sample_scores[:, mask], atol=1e-6)
        np.testing.assert_allclose(one.result.scores[mask], exact[name].scores[mask], atol=1e-6)
        np.testing.assert_array_equal(one.result.scores[~mask], one.approximate.scores[~mask])
        np.testing.assert_allclose(one.approximate.scores, estimates[name].scores, rtol=1e-6)
        np.testing.assert_allclose(one.approximate.sample_scores, estimates[name].sample_scores, rtol=1e-6)
        assert not one.approximate.exact.any()
        sizes, run = np.abs(one.approximate.indirect_effects), mask & (np.arange(len(mask)) >= start)[:, None]
        assert sizes[run].min() >= sizes[~run].max()
        assert (one.result.indirect_effects[:start] == 0).all()
        expected = rank_correlation(one.approximate.indirect_effects[run], exact[name].indirect_effects[run])
        np.testing.assert_allclose(one.rank_correlation, expected)


def test_screening_runs_the_chosen_cells_only(monkeypatch):
    asked = []

    def counting(model, base, donor, cells, metrics, **options):
        asked.extend(cells)
        return run_sweep(model, base, donor, cells, metrics, **options)

    monkeypatch.setattr(exact_tracing, "run_sweep", counting)
    found = screened(top=2, mediators=["hidden", "mlp_window"])
    assert len(asked) == 4
    places = [(cell.token, cell.start) for cell in asked if cell.site == "resid_post"]
    start = found["hidden"].result.subject_span[0]
    assert places == [tuple(place) for place in np.argwhere(found["hidden"].result.exact) if place[0] >= start]


@pytest.mark.parametrize(("counterfactual", "first"), [("in Eiffel Tower is in", 0), ("The Eiffel Tower of in", 3)])
def test_cells_count_from_the_first_token_that_a_counterfactual_changes(counterfactual, first):
    (found,) = screened(counterfactual=counterfactual, share=0.2, mediators=["hidden"]).values()
    mask = found.result.exact
    assert mask[:first].all()
    assert mask[first:].sum() == np.ceil(0.2 * mask[first:].size)
    (exact,) = traced(MODELS["llama"], counterfactual=counterfactual, mediators=["hidden"]).values()
    np.testing.assert_allclose(found.result.sample_scores[:, mask], exact.sample_scores[:, mask], atol=1e-6)


def test_screening_everything_is_the_exact_trace():
    for one in (screened(share=1.0), screened(top=10_000)):
        for name, result in traced(MODELS["llama"]).items():
            assert one[name].result.method == "exact"
            np.testing.assert_allclose(one[name].result.scores, result.scores, atol=1e-6)


def test_one_exact_cell_has_no_rank_correlation():
    assert np.isnan(screened(top=1, mediators=["hidden"])["hidden"].rank_correlation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share is 0; give a share of the cells above 0 and at most 1"),
        ({"share": 1.5}, "share is 1.5; give a share of the cells above 0 and at most 1"),
        ({"top": 0}, "top is 0; give at least 1 cell to run"),
        (
            {"mediators": ["hiden"]},
            f"unknown mediator 'hiden'; did you mean 'hidden'? Allowed: {', '.join([*MEDIATORS, *UNIT_MEDIATORS])}",
        ),
    ],
)
def test_invalid_screenings_are_refused_with_a_reason(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        screened(**options)
