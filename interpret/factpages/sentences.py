"""Agreement and answers in sentences that cannot be misread."""

from collections.abc import Mapping
from typing import Any

from interpret.display.heatmaps import readable, small_probability
from interpret.factpages.agreement import Agreement
from interpret.factpages.grids import COMPARED, FactGrids, Peak
from interpret.stats import Average

AMONG_WORDS = {"all": "from the subject on", "subject": "of the subject"}
"""One of ``AMONG`` -> which tokens these are."""


def agreement_sentence(found: Agreement) -> str:
    """Return how far two methods agree on a fact."""
    first, second = COMPARED[found.first], COMPARED[found.second]
    head = f"{first[:1].upper()}{first[1:]} and {second} {found.verdict} here"
    if found.verdict == "cannot be compared":
        return f"{head}: one of them gives the same score to all {found.n_cells} cells."
    order = {
        "agree": "they rank the cells in nearly the same order",
        "agree in part": "their orders of the cells are similar, with clear differences",
        "disagree": "the order of one says next to nothing about the order of the other",
        "contradict each other": "cells that are high by one tend to be low by the other",
    }[found.verdict]
    return f"{head}: {order}."


def peak_sentence(found: Agreement, grids: FactGrids) -> str:
    """Return whether the peaks of two methods coincide."""
    one, other = found.first_peak, found.second_peak
    if one is None or other is None:
        return "There is no peak to compare."
    if found.same_peak:
        return f"Their peaks coincide: {place(grids, one)}."
    apart = f"{found.layers_apart} layer{'s'[: found.layers_apart != 1]} apart" if found.layers_apart else "same layer"
    how = f"same token, {apart}" if found.same_token else "different tokens"
    return (
        f"Their peaks do not coincide ({how}): {COMPARED[found.first]} peaks at {place(grids, one)}, "
        f"{COMPARED[found.second]} at {place(grids, other)}."
    )


def place(grids: FactGrids, peak: Peak) -> str:
    """Return a cell in words."""
    return f"layer {peak.layer}, token {peak.token} “{readable(grids.tokens[peak.token])}”"


def answer_sentence(details: Mapping[str, Any]) -> str:
    """Return whether the model knows the fact, and what it says instead if it does not."""
    answer, fact = details["answer"], details["fact"]
    first = next(row for row in answer["next"] if row["id"] == answer["answer_id"])
    p = small_probability(first["probability"] or 0.0)
    if answer["reason"] == "not finite":
        return "The model has no answer: it gives NaN or infinity."
    said = f"it says “{readable(answer['continuation'])}”"
    where = f"Among all next tokens, “{readable(first['token'])}” is {_rank(first['rank'])} (probability {p})."
    if answer["known"]:
        return f"The model knows this fact: {said}. {where}"
    return f"The model does not know this fact: {said} instead of “{readable(fact['attribute'])}”. {where}"


def _rank(rank: float | None) -> str:
    if rank is None:
        return "without a rank"
    return "the likeliest" if rank == 1 else f"number {int(rank):,}"


def interval(found: Average, *, share: bool = False) -> str:
    """Return a mean with its interval.

    >>> from interpret.stats import average
    >>> interval(average([1.0, 0.0]), share=True)
    '50% (0% to 100%)'
    """
    values = [float(value) for value in (found.mean, found.low, found.high)]
    mean, low, high = (f"{value:.0%}" if share else f"{value:+.2f}".replace("-", "−") for value in values)
    return f"{mean} ({low} to {high})" if found.n > 1 else mean
