"""What an attribution shows: the text coloured by its scores, and a heat map for each input."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpret.attribution.result.aggregation import aggregate
from interpret.attribution.result.scores import Attributed, AttributionScores, ScoreArray
from interpret.display.heatmaps import (
    Band,
    Heatmap,
    Panel,
    SentencePiece,
    headings,
    plain_headings,
    readable,
    visible,
)
from interpret.display.view import View
from interpret.finite import Tally
from interpret.prompts.spelling import join_pieces

_OPERATORS = {
    "probability": "P({})",
    "logit": "logit({})",
    "answer_log_probability": "ln P({})",
    "cross_entropy": "−ln P({})",
    "contrast_logits": "logit({1})",
    "contrast_logits_diff": "logit({}) − logit({})",
    "contrast_prob_diff": "P({}) − P({})",
}
"""How a value of a function is written, with its token and the foil."""
DIMENSIONLESS = "1"


def attribution_view(attribution: AttributionScores) -> View:
    """Return what an attribution shows; of one that is read from disk, one input at a time is held in memory.

    For each input, rows are tokens and columns attributed tokens; for layer methods there is a heat map for each
    attributed token, with layers as rows and tokens as columns. The embedding dimension is summed.
    """
    unit, words = attribution.info.unit, function_words(attribution)
    return View(
        title=title(attribution),
        unit=f"effect on {words}" + (f" ({unit})" if unit not in (DIMENSIONLESS, words) else ""),
        panels=lambda: panels(attribution),
        n_panels=len(attribution.sequences),
        facts=_facts(attribution),
        warning=not_finite(attribution),
    )


def title(attribution: AttributionScores) -> str:
    """Return a title of one line, such as ``Attribution of P(Paris) − P(London) by saliency``."""
    return f"Attribution of {function_words(attribution)} by {attribution.info.method}"


def function_words(attribution: AttributionScores) -> str:
    """Return the attributed function; of a single token, with the token and its foil."""
    name = attribution.info.attributed_fn
    if len(attribution.sequences) != 1 or name not in _OPERATORS:
        return name
    one = attribution.sequences[0]
    if one.stop - one.start != 1:
        return name
    texts = (one.tokens[one.start : one.stop], one.foil_tokens or ())
    return _OPERATORS[name].format(*(plain_text(text) or visible(join_pieces(text)) for text in texts))


def not_finite(attribution: AttributionScores) -> str:
    """Return a line that counts the scores that are not finite; "" if all are finite."""
    tally = Tally()
    for one in attribution.sequences:
        own = one.tally()
        tally = Tally(tally.bad + own.bad, tally.total + own.total)
    return tally.left_out("scores", "colour scales and normalisation")


def panels(attribution: AttributionScores) -> Iterator[Panel]:
    """Yield the panel of each input, one at a time; the embedding dimension is summed."""
    for one in attribution.sequences:
        summed = aggregate(replace(attribution, sequences=[one]), None, False, None, False, None)
        yield from map(_panel, summed.sequences)


def plain_text(tokens: Sequence[str]) -> str:
    """Return tokens joined to plain text, for titles."""
    return readable(join_pieces(tokens))


def _panel(one: Attributed) -> Panel:
    prompt = one.tokens[: one.n_prompt] if one.source_tokens is None else one.source_tokens
    continuation = plain_text(one.tokens[one.n_prompt :])
    if one.foil_tokens is not None:
        continuation += f" (foil: {plain_text(one.foil_tokens)})"
    if one.layer_scores:
        return Panel(plain_text(prompt), _layer_grids(one), continuation)
    return Panel(plain_text(prompt), [_token_grid(one)], continuation, _sentence(one))


def _token_grid(one: Attributed) -> Heatmap:
    """Return a heat map with tokens as rows and attributed tokens as columns."""
    bands = []
    if one.source_tokens is not None and one.source_scores is not None:
        bands.append(Band("source", headings(one.source_tokens), one.source_scores))
    if one.scores is not None:
        # The last attributed token and those after it have no scores.
        rows = headings(one.tokens)[: max(one.stop - 1, 0)]
        bands.append(Band("text", rows, one.scores[: len(rows)], one.unscored()[: len(rows)]))
    across = headings(one.tokens)[one.start : one.stop]
    details = {name: _with_gaps(values) for name, values in one.details.items()}
    return Heatmap(
        "Score of each token for each attributed token", "token", across, bands, foot=one.step_scores | details
    )


def _sentence(one: Attributed) -> list[SentencePiece]:
    """Return the text, or the source and its target, with the scores for the first attributed token."""
    pieces, n_source = [], 0
    if one.source_tokens is not None and one.source_scores is not None and one.stop > one.start:
        n_source = len(one.source_tokens)
        scores = one.source_scores[:, 0].tolist()
        pieces = [
            SentencePiece(text, row, None, score)
            for row, (text, score) in enumerate(zip(_written(one.source_tokens), scores, strict=True))
        ]
        pieces.append(SentencePiece(" → "))
    for position, text in enumerate(_written(one.tokens)):
        row = n_source + position if one.scores is not None and position < one.stop - 1 else None
        column = position - one.start if one.start <= position < one.stop else None
        seen = one.scores is not None and position < one.start < one.stop
        score = float(one.scores[position, 0]) if seen and one.scores is not None else np.nan
        pieces.append(SentencePiece(text, row, column, score))
    return pieces


def _written(tokens: Sequence[str]) -> list[str]:
    """Return the tokens of a sentence: with their own spaces, other control characters visible."""
    return [readable(f"|{token}|")[1:-1] for token in tokens]


def _with_gaps(values: ScoreArray) -> NDArray[Any]:
    """Return values with None in place of NaN, which marks steps without a value."""
    gaps = values.astype(object)
    gaps[np.isnan(values)] = None
    return gaps


def _layer_grids(one: Attributed) -> list[Heatmap]:
    """Return a heat map for each attributed token and site, with layers as rows and tokens as columns."""
    grids = []
    names = sorted(one.layer_scores, key=_site_and_layer)
    for step, column in enumerate(range(one.start, one.stop)):
        for site, group in groupby(names, key=lambda name: _site_and_layer(name)[0]):
            of_site = list(group)
            values = np.stack([one.layer_scores[name][:column, step] for name in of_site])  # [R, C]
            layers = plain_headings([_site_and_layer(name)[1] for name in of_site])
            across, about = headings(one.tokens)[:column], headings(one.tokens)[column]
            title = f"{site}: score of each layer at each token"
            grids.append(Heatmap(title, "layer", across, [Band(site, layers, values)], step=about))
    return grids


def _site_and_layer(name: str) -> tuple[str, int]:
    """Split ``mlp_out.3`` into site and layer number, so that layer 2 is sorted before layer 10."""
    site, _, layer = name.rpartition(".")
    return site, int(layer)


def _facts(attribution: AttributionScores) -> Mapping[str, str]:
    """Return how an attribution was made, as names and readable values; empty values are left out."""
    info = attribution.info
    units = {f"unit of {name}": unit for name, unit in info.step_units.items()}
    options = {f"option {name}": str(value) for name, value in info.options.items()}
    named = {
        "method": info.method,
        "attributed function": info.attributed_fn,
        "contrast": info.contrast or "",
        "model": info.model,
        "tokenizer": info.tokenizer,
        "aggregated by": ", ".join(info.aggregation),
    }
    return {name: value for name, value in (named | units | options).items() if value}
