"""The page of one fact: what every method says of the same tokens and layers, with one selected cell.

The page is a self-contained HTML file. It is made of what a run folder holds: the rows of the fact, its file, and the
manifest. ``fact.js`` draws the grids and moves the selection; text and numbers of single values are in the HTML.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from interpret.display.heatmaps import readable, small_probability
from interpret.display.page import shade, shades
from interpret.factpages.agreement import agreements
from interpret.factpages.grids import TRACED, FactGrids, peak
from interpret.factpages.recipes import Recipe, recipes
from interpret.factpages.sentences import AMONG_WORDS, agreement_sentence, answer_sentence, peak_sentence
from interpret.pages.frame import page_pieces
from interpret.pages.interpretations import _script_safe
from interpret.pages.provenance import leaves, model_name
from interpret.records import EXACT, FactCell

HEADING = 100
"""Characters of the prompt that the heading shows on either side of the subject."""
SHOWN_UNITS = 10
"""Number of heads and of neurons that are shown."""
TITLES = {
    "hidden": ("Tracing: layer output", "indirect effect of restoring the output of one layer at one token"),
    "attn_severed": ("Tracing, attention severed", "the same, with the token's later attention held corrupted"),
    "mlp_severed": ("Tracing, MLPs severed", "the same, with the token's later MLPs held corrupted"),
    "attribution": ("Attribution: layer output", "activation × gradient of the output of one layer at one token"),
    "lens": ("Logit lens: rank of the answer", "rank of the answer if the output of one layer is decoded"),
}


def fact_page_pieces(
    cells: Sequence[FactCell], details: Mapping[str, Any], manifest: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the page of a fact in pieces.

    Args:
        cells: the rows of the fact, ordered by token and layer.
        details: what the run stored of it besides, see ``interpret.factpages.runs``.
        manifest: the manifest of the run; may be empty.
    """
    grids = FactGrids.of(cells)
    fact, identity = details["fact"], manifest.get("identity", {})
    before, subject, after = _heading(fact)
    steps = recipes(details, identity)
    size = f"{len(grids.tokens)} token{'s'[: len(grids.tokens) != 1]} × {grids.n_layers} layers"
    yield from page_pieces(
        __package__,
        "fact",
        more_style=shades(),
        title=f"{readable(fact['prompt'])} → {readable(fact['attribute'])}",
        before=before,
        subject=subject,
        after=after,
        fact=fact,
        model=model_name(manifest),
        summary=" · ".join(filter(None, [model_name(manifest), size])),
        estimated=_estimated(cells),
        answer=details["answer"],
        answer_sentence=answer_sentence(details),
        pairs=[
            {
                "found": found,
                "sentence": agreement_sentence(found),
                "peaks": peak_sentence(found, grids),
                "among": AMONG_WORDS[found.among],
                "correlation": _signed(found.correlation),
                "cells": [one for one in (found.first_peak, found.second_peak) if one is not None],
            }
            for found in agreements(grids)
        ],
        sentence=_sentence(grids, details),
        attributed="P(answer)" if fact["foil"] is None else "P(answer) − P(foil)",
        units={name: _units(details[name], grids, cells[0]) for name in ("heads", "neurons")},
        knockout=details["knockout"],
        interpretations=_interpretations(details["interpretations"], grids),
        recipes=steps,
        provenance=leaves(identity) + leaves(manifest.get("circumstances", {})),
        small=small_probability,
        readable=readable,
        signed=_signed,
        data=Markup(_script_safe(_data(grids, details, steps[-1]))),
    )


def _heading(fact: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the prompt before its subject, the subject, and what follows it, without the far ends of a long prompt."""
    parts = fact["prompt"].split(fact["subject"])
    at = (fact["occurrence"] or 0) + 1
    before, after = fact["subject"].join(parts[:at]), fact["subject"].join(parts[at:])
    if len(before) > HEADING:
        before = "… " + _from_a_word(before[-HEADING:])
    if len(after) > HEADING:
        after = _from_a_word(after[HEADING - 1 :: -1])[::-1] + " …"
    return before, fact["subject"], after


def _from_a_word(text: str) -> str:
    """Return a text without the part of a word with which it begins; all of it if it has no space."""
    return text.partition(" ")[2].lstrip() or text


def _estimated(cells: Sequence[FactCell]) -> str:
    """Return the share of estimates among the cells of tracing from the subject on, in words; "" if there is none."""
    start = next(cell.token_idx for cell in cells if cell.in_subject)
    share = float(np.mean([cell.hidden_method != EXACT for cell in cells if cell.token_idx >= start]))
    return f"{share:.0%}" if share else ""


def _signed(value: float | None) -> str:
    """Return a number with its sign and three decimals; a smaller one with two digits."""
    if value is None or not math.isfinite(value):
        return "none"
    return (f"{value:+.3f}" if not value or abs(value) >= 0.0005 else f"{value:+.1e}").replace("-", "−")


def _sentence(grids: FactGrids, details: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens of the prompt with their attribution."""
    scores = [math.nan if score is None else score for score in details["attribution"]["tokens"]]
    largest = max((abs(score) for score in scores if math.isfinite(score)), default=0.0)
    return [
        {"token": token, "position": place, "score": _signed(score), "shade": shade(score, largest)}
        for place, (token, score) in enumerate(zip(grids.tokens, scores, strict=True))
    ]


def _units(part: Mapping[str, Any], grids: FactGrids, cell: FactCell) -> dict[str, Any]:
    """Return the heads or neurons with the largest effects, or why there are none."""
    if "missing" in part:
        return {"missing": part["missing"], "rows": []}
    rows = part["rows"][:SHOWN_UNITS]
    largest = max((abs(row["indirect_effect"] or 0.0) for row in rows), default=0.0)
    total = cell.clean - cell.corrupted
    return {
        "missing": "",
        "rows": [
            row
            | {
                "token": grids.tokens[row["token_idx"]],
                "effect": _signed(row["indirect_effect"]),
                "share": f"{(row['indirect_effect'] or 0.0) / total:.0%}".replace("-", "−") if total else "",
                "shade": shade(row["indirect_effect"] or 0.0, largest),
            }
            for row in rows
        ],
    }


def _interpretations(part: Mapping[str, Any], grids: FactGrids) -> dict[str, Any]:
    """Return the interpreted cells, in the order of tokens and layers; every gain over a control is shown by its name.

    The output of layer l is state l + 1 of the interpretation.
    """
    if "missing" in part:
        return {"missing": part["missing"], "control": "", "rows": []}
    rows = [row for row in part["rows"] if row["kind"] in ("interpretation", "failed")]
    control = next((row["interpretation_text"] for row in part["rows"] if row["kind"] == "control"), "")
    return {
        "missing": "",
        "control": control,
        "rows": [
            {
                "token": row["token_idx"],
                "layer": row["layer_idx"] - 1,
                "piece": grids.tokens[row["token_idx"]],
                "text": row["interpretation_text"] if row["kind"] == "interpretation" else "",
                "failed": row["kind"] == "failed",
                "more": row["says_more_than_controls"],
                "gains": [
                    (name.removeprefix("gain_over_").replace("_", " "), _signed(value))
                    for name, value in row.items()
                    if name.startswith("gain_over_")
                ],
            }
            for row in rows
        ],
    }


def _data(grids: FactGrids, details: Mapping[str, Any], making: Recipe) -> dict[str, Any]:
    """Return what the script draws."""
    cells = grids.cells
    columns = ("attribution", "lens_rank", "lens_probability", "lens_token_probability", *TRACED)
    pieces = list(dict.fromkeys(cell.lens_token for cell in cells))
    number = {piece: index for index, piece in enumerate(pieces)}
    knockout = details["knockout"]
    return {
        "tokens": grids.tokens,
        "span": grids.subject_span,
        "layers": grids.n_layers,
        "answer": cells[0].answer,
        "pieces": pieces,
        "lens_token": [number[cell.lens_token] for cell in cells],
        "values": {name: [_rounded(getattr(cell, name)) for cell in cells] for name in columns},
        "exact": {name: [int(getattr(cell, f"{name}_method") == EXACT) for cell in cells] for name in TRACED},
        "estimate": next((cell.hidden_method for cell in cells if cell.hidden_method != EXACT), ""),
        "titles": TITLES,
        "knockout": None if "missing" in knockout else knockout,
        "units": {name: details[name].get("rows", [])[:SHOWN_UNITS] for name in ("heads", "neurons")},
        "start": _start(grids),
        "making": [f"{making.command} --layers {{layer}} --tokens {{token}}", making.python],
    }


def _start(grids: FactGrids) -> tuple[int, int]:
    """Return the cell that is selected first: the peak of tracing among the subject's tokens."""
    found = peak(grids, "trace", "subject")
    return (grids.subject_span[1] - 1, 0) if found is None else (found.token, found.layer)


def _rounded(value: float | int | None) -> float | None:
    """Return a number with seven significant digits; None if it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.7g}")


def fact_page_html(cells: Sequence[FactCell], details: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """Return the page of a fact, see ``fact_page_pieces``."""
    return "".join(fact_page_pieces(cells, details, manifest))
