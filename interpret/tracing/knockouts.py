"""Attention knockout of one prompt: how much the answer changes if a token cannot attend to others.

Geva, Bastings, Filippova & Globerson 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language
Models" (arXiv:2304.14767), section 5: in a window of layers, the attention of the last token to the subject, to the
other tokens of the prompt or to itself is knocked out of the clean run, and the change of the answer's probability is
read. ``attn_knockout`` is the mediator that does the same in traces, for every token that attends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from json import dumps
from typing import TYPE_CHECKING

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret import drawing
from interpret.anatomy import check_decoder_only, check_length, text_config, unwrapping
from interpret.display.heatmaps import Band, Heatmap, Panel, plain_headings, readable, small_probability
from interpret.display.shown import Shown, check_input
from interpret.display.view import View
from interpret.errors import InputError
from interpret.finite import warn
from interpret.prompts.chat import framed
from interpret.prompts.spelling import join_pieces, pieces
from interpret.prompts.subjects import tokenised
from interpret.prompts.tokens import TokenisedPrompt, select_tokens, tokenise
from interpret.stats import Floats, average
from interpret.sweep import Cell, Knockout, run_sweep, window_around
from interpret.sweep.cells import ATTENTION
from interpret.sweep.metrics import Kind
from interpret.tracing.inputs import AnswerTokens, check_answer_tokens, embeddings_of, read_ids
from interpret.tracing.metrics import check_trace_metrics, trace_metrics
from interpret.tracing.result import cells_not_finite
from interpret.tracing.source_tokens import RELATION, SUBJECT, check_sources, source_tokens
from interpret.work.progress import showing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GEVAS_WINDOW = 9


@dataclass(frozen=True)
class KnockoutResult(Shown):
    """The knockouts of one prompt: K sources by L layers."""

    values: dict[str, Floats] = field(repr=False)
    """Name of a metric -> [K, L], its value with attention to the source knocked out in the window around the layer."""
    clean: dict[str, float]
    """Name of a metric -> its value in the clean run."""
    sources: tuple[str, ...]
    """[K], the sources as they were given."""
    source_tokens: tuple[tuple[int, ...], ...]
    """[K], positions of the tokens of each source."""
    reader: int
    """Position of the token that cannot attend to them."""
    tokens: tuple[str, ...]
    """[T], texts of the prompt's tokens."""
    answer_ids: tuple[int, ...]
    """Ids of the tokens that are read."""
    answer: str
    """Their text."""
    prompt: str
    """The text of the prompt."""
    window: int
    """Number of layers in which attention is knocked out together."""
    heads: tuple[tuple[int, int], ...] | None
    """The (layer, head) pairs in which it is knocked out; None for all heads."""

    @property
    def effects(self) -> dict[str, Floats]:
        """Name of a metric -> [K, L], its change: ``values`` minus ``clean``."""
        return {metric: values - self.clean[metric] for metric, values in self.values.items()}

    @property
    def relative_effects(self) -> dict[str, Floats]:
        """Name of a metric -> [K, L], its change divided by ``clean``, as in the figures of Geva et al."""
        return {metric: effects / self.clean[metric] for metric, effects in self.effects.items()}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric, source and layer."""
        return pd.DataFrame(
            {
                "prompt": self.prompt,
                "answer": self.answer,
                "metric": metric,
                "reader_idx": self.reader,
                "reader": self.tokens[self.reader],
                "source": source,
                "source_idxs": dumps(self.source_tokens[number]),
                "layer_idx": layer,
                "window": self.window,
                "clean": self.clean[metric],
                "knocked_out": values[number, layer],
                "effect": self.effects[metric][number, layer],
                "relative_effect": self.relative_effects[metric][number, layer],
            }
            for metric, values in self.values.items()
            for number, source in enumerate(self.sources)
            for layer in range(values.shape[1])
        )

    def view(self) -> View:
        """Return what is shown: the effects, sources by layers, one panel per metric."""
        return View(
            title=self._title,
            unit="change of the metric by the knockout",
            panels=lambda: map(self._panel, self.values),
            n_panels=len(self.values),
            warning=cells_not_finite(self.effects.values()),
        )

    @property
    def _title(self) -> str:
        reader = f"{self.tokens[self.reader].strip()!r} (token {self.reader})"
        return f"Attention of {reader} knocked out in {self.window} layer{'s'[: self.window != 1]}"

    def _panel(self, metric: str) -> Panel:
        effects, rows = self.effects[metric], plain_headings(self.sources)
        layers = plain_headings(range(effects.shape[1]))
        grid = Heatmap("attention to", "source", layers, [Band("", rows, effects)], "layer", compact=True)
        clean = f"{metric} {small_probability(self.clean[metric])}"
        return Panel(readable(self.prompt), [grid], f"{readable(self.answer)} ({clean})", name=metric)

    def figure(self, input: int = 0) -> "Figure":
        """Return the effects as curves over layers, one per source, a panel per metric; ``input`` is always 0."""
        check_input(input, 1)
        curves = {
            metric: {source: average([row]) for source, row in zip(self.sources, effects, strict=True)}
            for metric, effects in self.effects.items()
        }
        return drawing.layer_curves(curves, unit="change by the knockout", headline=self._title)


@unwrapping
@torch.no_grad()
def knockout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str | None = None,
    answer: str | Sequence[int] | None = None,
    *,
    sources: Sequence[str] = (SUBJECT, RELATION, "itself"),
    reader: str | int = "last",
    window: int = GEVAS_WINDOW,
    heads: Sequence[tuple[int, int]] | None = None,
    metrics: Sequence[Kind] = ("probability",),
    foil: str | Sequence[int] | None = None,
    answer_tokens: AnswerTokens = "first",
    occurrence: int | None = None,
    chat_template: str | None = None,
    memory: int | None = None,
    progress: bool = True,
) -> KnockoutResult:
    """Knock out the attention of a token to others, in a window around each layer of the clean run.

    A score of -inf before the softmax hides a source from the reader; the attention of all other tokens, and of the
    reader in the other layers, is computed as usual. All knockouts share the clean run before their window.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        prompt: the prompt.
        subject: the part of the prompt that the sources ``subject`` and ``relation`` refer to; None if they are not
            used.
        answer: the expected continuation, as words or as token ids; by default the most likely next token.
        sources: the tokens that are hidden from the reader, one curve for each entry: ``subject``; ``relation``, all
            other tokens but the reader, special tokens included; ``itself``, the reader; ``last``, the last token; a
            position, a slice, or several of these joined by commas. Tokens after the reader have no effect. A reader
            that is left with nothing to attend to gets nothing from the attention.
        reader: the token that cannot attend to the sources: a position, ``last`` or ``subject_last``.
        window: number of layers in which attention is knocked out together. The window of layer l starts at layer
            ``l - window // 2``; layers outside the model are left out.
        heads: the heads in which it is knocked out, as (layer, head); None for all heads of these layers.
        metrics: what is read: ``probability``, ``log_probability``, ``logit``, ``logit_difference`` or ``rank``.
        foil: a wrong answer, for ``logit_difference``.
        answer_tokens: ``first`` or ``whole``: read the first token of the answer, or the whole answer.
        occurrence: index of the occurrence of the subject, from 0; required if there are several.
        chat_template: template that makes the prompt the user's message of a chat, see ``TraceSettings``.
        memory: bytes that the sweep may use; None to choose from the device's memory.
        progress: show a progress bar while it runs, in a terminal or a notebook.

    Returns:
        The knockouts, by source and layer.

    Raises:
        InputError: if an argument is invalid or the arguments do not fit together.
        UnsupportedModelError: if the model is not of a supported family, or its attention cannot be knocked out.

    Example:
        >>> result = knockout(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> result.relative_effects["probability"].argmin(axis=1)  # doctest: +SKIP
    """
    _check(sources, metrics, answer_tokens)
    check_decoder_only(model)
    text = framed(tokenizer, prompt, chat_template)
    if subject is None:
        tokens = tokenise(tokenizer, text)
    else:
        tokens = tokenised(tokenizer, prompt, subject, occurrence, chat_template)
    n_tokens, n_layers = len(tokens.ids), text_config(model).num_hidden_layers
    span = None if tokens.subject is None else (tokens.subject[0], tokens.subject[-1] + 1)
    token = _reader(reader, tokens)
    hidden = [source_tokens(source, token, n_tokens, span) for source in sources]
    check_length(model, "the prompt", n_tokens)
    answer_ids = read_ids(model, tokenizer, text, tokens, answer, answer_tokens)
    chosen = trace_metrics(tokenizer, text, answer_ids, foil, metrics)
    pairs = None if heads is None else tuple((layer, head) for layer, head in heads)
    cells = [
        Cell(ATTENTION, token, *window_around(layer, window, n_layers), knockout=Knockout(places, pairs))
        for places in hidden
        for layer in range(n_layers)
    ]
    clean = embeddings_of(model, [*tokens.ids, *answer_ids[:-1]])
    with showing("Knocking out", shown=progress):
        found = run_sweep(model, clean, clean, cells, chosen, memory=memory)
    values = {name: value[:, 0].reshape(len(hidden), n_layers).numpy() for name, value in found.values.items()}
    result = KnockoutResult(
        values=values,
        clean={name: value[0].item() for name, value in found.base.items()},
        sources=tuple(sources),
        source_tokens=tuple(hidden),
        reader=token,
        tokens=tuple(tokens.pieces),
        answer_ids=answer_ids,
        answer=join_pieces(pieces(tokenizer, answer_ids)),
        prompt=tokens.text,
        window=window,
        heads=pairs,
    )
    warn(cells_not_finite(result.effects.values()))
    return result


def _check(sources: Sequence[str], metrics: Sequence[str], answer_tokens: str) -> None:
    """Check the arguments that can be checked without a model."""
    if isinstance(sources, str) or not sources:
        raise InputError(f"sources is {sources!r}; give a list with one entry per curve, such as ['subject', 'itself']")
    for source in sources:
        check_sources(source)
    check_trace_metrics(metrics)
    check_answer_tokens(answer_tokens)


def _reader(reader: str | int, tokens: TokenisedPrompt) -> int:
    """Return the position of the one token that attends."""
    found = select_tokens(str(reader), tokens)
    if len(found) != 1:
        raise InputError(f"reader {reader!r} is {len(found)} tokens; give a single one, such as 'last'")
    return found[0]
