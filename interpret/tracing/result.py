"""The trace of one prompt with one mediator."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from interpret.display.shown import Shown, check_input
from interpret.display.view import View
from interpret.facts.buckets import token_buckets
from interpret.facts.files import Fact
from interpret.finite import Tally
from interpret.prompts.spelling import join_pieces, pieces
from interpret.records import EXACT, SCREENED, EstimateMethod, TraceCell, TraceMethod
from interpret.stats import Floats
from interpret.sweep.cells import CellSite
from interpret.tracing.cell_values import CellValues
from interpret.tracing.inputs import TraceInputs
from interpret.tracing.mediators import ActsOn, mediator_named
from interpret.tracing.show import Traces, prompt_figure, trace_view
from interpret.tracing.tables import TraceGrid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TraceResult(Shown):
    """The trace of one prompt with one mediator: T tokens, L layers, S noise samples."""

    scores: Floats = field(repr=False)
    """[T, L], the metric, by default the probability of the answer, with one state restored (or corrupted, see
    ``acts_on``), mean over samples; not finite if a sample is not."""
    low: float
    """The metric in the corrupted runs, mean over samples."""
    high: float
    """The metric in the clean run."""
    answer_id: int
    """Id of the token whose probability is read; of a whole answer, the first token."""
    answer_ids: tuple[int, ...]
    """Ids of all tokens that are read."""
    answer: str
    """Their text."""
    prompt: str
    """The text of the prompt."""
    subject_span: tuple[int, int]
    """Position of the first token of the subject, and one past the last."""
    tokens: tuple[str, ...]
    """[T], texts of the prompt's tokens."""
    token_ids: tuple[int, ...]
    """[T], their ids."""
    metric: str
    """What is read, see ``TraceSettings``."""
    mediator: str
    """The name of the mediator."""
    site: CellSite
    """The activation that was restored or corrupted."""
    acts_on: ActsOn
    """The run that was patched, see ``Mediator.acts_on``."""
    window: int | None
    """Number of layers restored together; None if the mediator has no window."""
    sample_scores: Floats = field(repr=False)
    """[S, T, L], the scores of each noise sample; [1, T, L] where attention is knocked out of the clean run."""
    sample_lows: Floats = field(repr=False)
    """[S], the metric in the corrupted run of each noise sample."""
    exact: NDArray[np.bool_] = field(repr=False)
    """[T, L], True for scores from runs; the others are first-order estimates, which may be outside [0, 1]."""
    estimate: EstimateMethod | None
    """The method of the estimates, ``approximate`` or ``relp``; None if nothing was estimated."""

    @property
    def method(self) -> TraceMethod:
        """How the scores were computed: ``exact``, the method of the estimates, or ``screened`` if some are exact."""
        if self.estimate is None or self.exact.all():
            return EXACT
        return SCREENED if self.exact.any() else self.estimate

    @property
    def total_effect(self) -> float:
        """TE, the metric in the clean run minus that in the corrupted runs."""
        return self.high - self.low

    @property
    def indirect_effects(self) -> Floats:
        """IE, [T, L]: ``scores`` minus ``low``, or minus ``high`` if the clean run was patched."""
        return self.scores - (self.low if self.acts_on == "corrupted" else self.high)

    @property
    def normalised_effects(self) -> Floats:
        """[T, L], the indirect effects divided by the total effect: 1 for a restoration of the whole answer."""
        return self.indirect_effects / self.total_effect

    @property
    def spread(self) -> Floats:
        """[T, L], the standard deviation of the indirect effect over noise samples; NaN for a single one."""
        of_base = self.sample_lows[:, None, None] if self.acts_on == "corrupted" else self.high
        effects = self.sample_scores - of_base
        return effects.std(axis=0, ddof=1) if len(effects) > 1 else np.full(effects.shape[1:], np.nan)

    def grid(self, name: str = "trace") -> TraceGrid:
        """Return the trace as a grid for tables and figures of several traces.

        Args:
            name: name of the prompt in the grid.
        """
        return TraceGrid(
            name=name,
            prompt=self.prompt,
            answer=self.answer,
            metric=self.metric,
            mediator=self.mediator,
            tokens=self.tokens,
            subject_span=self.subject_span,
            clean=self.high,
            corrupted=self.low,
            scores=self.scores,
            effects=self.indirect_effects,
            spread=self.spread,
            exact=self.exact,
        )

    def rows(self) -> Traces:
        """Return the trace as rows, one per token and layer, as in the table of a run."""
        start, end = self.subject_span
        subject = join_pieces(self.tokens[start:end]).strip()
        return Traces(trace_cells(Fact("trace", self.prompt, subject, self.answer.strip()), self))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per token and layer, with the columns of the table of a run."""
        return self.rows().to_frame()

    def view(self) -> View:
        """Return what is shown: the indirect effect of each token and layer."""
        return trace_view([self.grid()], self.window)

    def figure(self, input: int = 0) -> "Figure":
        """Return a heatmap of the scores, tokens by layers, as in figure 1 of ROME; ``input`` is always 0."""
        check_input(input, 1)
        return prompt_figure([self.grid()], window=self.window)

    def _csv(self) -> bytes:
        return self.rows()._csv()


class TracedMediators(dict[str, TraceResult], Shown):
    """The traces of one prompt with several mediators, by the name of the mediator."""

    def rows(self) -> Traces:
        """Return the traces as rows, one per mediator, token and layer, as in the table of a run."""
        return Traces(row for result in self.values() for row in result.rows())

    def to_frame(self) -> pd.DataFrame:
        """Return one row per mediator, token and layer, with the columns of the table of a run."""
        return self.rows().to_frame()

    def view(self) -> View:
        """Return what is shown: a heat map of the indirect effects for each mediator."""
        return self.rows().view()

    def figure(self, input: int = 0) -> "Figure":
        """Return heatmaps of the scores, tokens by layers, one per mediator, with one scale of colours."""
        return self.rows().figure(input)

    def _csv(self) -> bytes:
        return self.rows()._csv()


def trace_cells(fact: Fact, result: TraceResult) -> list[TraceCell]:
    """Return the T * L rows of a fact's trace, ordered by token and layer.

    Args:
        fact: the traced fact.
        result: its trace with one mediator.
    """
    n_tokens, n_layers = result.scores.shape
    rome, kt = (token_buckets(n_tokens, result.subject_span, scheme=scheme) for scheme in ("rome", "kt"))
    effects, spread = result.indirect_effects, result.spread
    start, end = result.subject_span
    return [
        TraceCell(
            name=fact.name,
            relation=fact.relation,
            prompt=fact.prompt,
            subject=fact.subject,
            attribute=fact.attribute,
            answer=result.answer,
            answer_id=result.answer_id,
            mediator=result.mediator,
            site=result.site,
            metric=result.metric,
            method=EXACT if result.estimate is None or result.exact[token, layer] else result.estimate,
            layer_idx=layer,
            window=result.window,
            token_idx=token,
            token=result.tokens[token],
            in_subject=start <= token < end,
            bucket_rome=rome[token] or "",
            bucket_kt=kt[token] or "",
            clean=result.high,
            corrupted=result.low,
            restored=float(result.scores[token, layer]),
            indirect_effect=float(effects[token, layer]),
            effect_std=None if len(result.sample_scores) == 1 else float(spread[token, layer]),
            total_effect=result.total_effect,
        )
        for token in range(n_tokens)
        for layer in range(n_layers)
    ]


def cells_not_finite(effects: Iterable[Floats]) -> str:
    """Return a message that counts the cells of traces whose effect is not finite; "" if all are finite."""
    tally = Tally()
    for grid in effects:
        tally.add(grid)
    return tally.left_out("cells", "averages, peaks and rank correlations")


def trace_result(
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediator: str,
    found: CellValues,
    window: int,
    metric: int = 0,
    *,
    estimate: EstimateMethod | None = None,
) -> TraceResult:
    """Return a result from the values of a mediator's cells, [M, T * L, S], ordered by token and layer.

    ``metric`` is the index of one of the M metrics of the inputs; ``estimate`` is the method by which the values were
    estimated, None if they are exact.
    """
    tokens, answer_ids, row, lows = inputs.tokens, inputs.answer_ids, mediator_named(mediator), found.lows[metric]
    values = found.values[metric]
    sample_scores = values.T.reshape(values.shape[1], len(tokens.ids), -1).copy()
    return TraceResult(
        scores=sample_scores.mean(axis=0),
        low=float(lows.mean()),
        high=float(found.highs[metric]),
        answer_id=answer_ids[0],
        answer_ids=answer_ids,
        answer=join_pieces(pieces(tokenizer, answer_ids)),
        prompt=tokens.text,
        subject_span=inputs.span,
        tokens=tuple(tokens.pieces),
        token_ids=tuple(tokens.ids),
        metric=inputs.metrics[metric].kind,
        mediator=mediator,
        site=row.site,
        acts_on=row.acts_on,
        window=window if row.windowed else None,
        sample_scores=sample_scores,
        sample_lows=lows,
        exact=np.full(sample_scores.shape[1:], estimate is None),
        estimate=estimate,
    )
