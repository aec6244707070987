"""Causal tracing: which hidden states, restored in a corrupted run, bring the answer back.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME, 2022), section 2. Three kinds of runs: clean;
corrupted, with noise on the embeddings of the subject; and corrupted with restoration of one state. A score is the
mean over noise samples of the probability of the answer. On the sweep engine; its result is a ``TraceResult``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, unknown
from interpret.sweep import Cell, Metric, Pin, Site, grid, sweep
from interpret.tracing.inputs import Target, TraceInputs, TraceSettings, trace_inputs
from interpret.tracing.tables import TraceGrid

Floats = NDArray[np.float64]
Mediator = Literal["hidden", "attn_severed", "mlp_severed", "attn_window", "mlp_window"]
Method = Literal["exact", "approximate", "screened"]


@dataclass(frozen=True)
class _Mediation:
    """What a mediator restores at a token, and what it holds there at the corrupted values in later layers."""

    site: Site
    pins: tuple[Pin, ...] = ()
    windowed: bool = False


MEDIATORS: Mapping[Mediator, _Mediation] = MappingProxyType(
    {
        "hidden": _Mediation("hidden"),
        "attn_severed": _Mediation("hidden", (Pin("attention"),)),
        "mlp_severed": _Mediation("hidden", (Pin("mlp"),)),
        "attn_window": _Mediation("attention", windowed=True),
        "mlp_window": _Mediation("mlp", windowed=True),
    }
)


@dataclass(frozen=True)
class TraceResult:
    """The trace of one prompt by one mediator."""

    scores: Floats = field(repr=False)
    """[T, L], probability of the answer with the state of a token and layer restored, mean over samples."""
    low: float
    """Probability of the answer in the corrupted runs, mean over samples."""
    high: float
    """Probability of the answer in the clean run."""
    answer_id: int
    """The token whose probability is read; the first one of a whole answer."""
    answer_ids: tuple[int, ...]
    """All tokens read."""
    answer: str
    """Their text."""
    subject_span: tuple[int, int]
    """First and one past the last token of the subject."""
    tokens: tuple[str, ...]
    """[T] texts."""
    token_ids: tuple[int, ...]
    """[T]."""
    mediator: Mediator
    sample_scores: Floats = field(repr=False)
    """[S, T, L], the scores of each noise sample."""
    sample_lows: Floats = field(repr=False)
    """[S], the corrupted runs' probabilities."""
    exact: NDArray[np.bool_] = field(repr=False)
    """[T, L], which scores are those of runs; the others are first-order estimates, which may leave 0 to 1."""

    @property
    def method(self) -> Method:
        """How the scores were had: ``exact``, ``approximate``, or ``screened`` where some are exact."""
        if self.exact.all():
            return "exact"
        return "screened" if self.exact.any() else "approximate"

    @property
    def total_effect(self) -> float:
        """TE, clean minus corrupted probability."""
        return self.high - self.low

    @property
    def indirect_effects(self) -> Floats:
        """IE, [T, L]: restored minus corrupted probability."""
        return self.scores - self.low

    @property
    def spread(self) -> Floats:
        """[T, L], the standard deviation of the indirect effect over noise samples; NaN for a single one."""
        effects = self.sample_scores - self.sample_lows[:, None, None]
        return effects.std(axis=0, ddof=1) if len(effects) > 1 else np.full(effects.shape[1:], np.nan)

    def grid(self, name: str = "trace") -> TraceGrid:
        """Return the trace as tables and figures take it, such as ``prompt_figure([result.grid()])``.

        Args:
            name: what the prompt is called there.
        """
        return TraceGrid(
            name=name,
            prompt="".join(self.tokens),
            answer=self.answer,
            mediator=self.mediator,
            tokens=self.tokens,
            subject_span=self.subject_span,
            p_clean=self.high,
            p_corrupted=self.low,
            scores=self.scores,
            effects=self.indirect_effects,
            spread=self.spread,
            exact=self.exact,
        )


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediator: Mediator = "hidden",
    noise: str | float | ArrayLike = "s3",
    samples: int = 10,
    seed: int = 0,
    replace: bool = False,
    window: int = 10,
    target: Target = "first",
    occurrence: int | None = None,
    counterfactual: str | None = None,
    reference_texts: Sequence[str] | None = None,
    memory: int | None = None,
) -> TraceResult:
    """Trace one prompt by one mediator.

    Args:
        model: a causal LM of a known family, in evaluation mode.
        tokenizer: its fast tokenizer.
        prompt: what the model reads, raw.
        subject: the part of the prompt whose embeddings are corrupted.
        answer: what is expected next; by default the token the clean run finds likeliest.
        mediator: what is restored at each token and layer: ``hidden``, the layer's output; ``attn_severed`` and
            ``mlp_severed``, the same with the token's attention or MLP outputs held at their corrupted values in
            all later layers; ``attn_window`` and ``mlp_window``, attention or MLP outputs of ``window`` layers.
        noise: see ``TraceSettings``, also for what is not told here.
        samples: how many draws of noise.
        seed: of the draws.
        replace: put the noise in place of the embeddings.
        window: how many layers the windows have: of layer l those from ``l - window // 2`` on, cut off at the model's
            first and last, as in ROME.
        target: ``first`` or ``whole``.
        occurrence: which of several occurrences of the subject, from 0.
        counterfactual: another prompt, of the same number of tokens, that takes the place of the noise.
        reference_texts: the texts that set the size of the noise.
        memory: bytes that may be used.

    Raises:
        InputError: if an argument is wrong or the arguments do not fit together.
        UnsupportedModelError: if the model is of no known family.

    Example:
        >>> result = trace(model, tokenizer, "The Eiffel Tower is in", "Eiffel Tower")  # doctest: +SKIP
        >>> result.indirect_effects.argmax()  # doctest: +SKIP
    """
    texts = None if reference_texts is None else tuple(reference_texts)
    settings = TraceSettings(noise, samples, seed, replace, window, target, texts, memory)
    results = trace_mediators(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        mediators=[mediator],
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
    )
    return results[mediator]


@torch.no_grad()
def trace_mediators(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None = None,
    *,
    mediators: Sequence[Mediator] = ("hidden", "attn_severed", "mlp_severed"),
    settings: TraceSettings | None = None,
    occurrence: int | None = None,
    counterfactual: str | None = None,
) -> dict[Mediator, TraceResult]:
    """Trace one prompt by several mediators, which share the clean and the corrupted runs.

    Args:
        model: as in ``trace``, like all that is not told here.
        tokenizer: as in ``trace``.
        prompt: as in ``trace``.
        subject: as in ``trace``.
        answer: as in ``trace``.
        mediators: which, in the order of the result.
        settings: how to corrupt and what to read.
        occurrence: as in ``trace``.
        counterfactual: as in ``trace``.

    Raises:
        InputError: as ``trace`` does.
        UnsupportedModelError: as ``trace`` does.
    """
    settings = settings or TraceSettings()
    check_mediators(mediators)
    inputs = trace_inputs(
        model,
        tokenizer,
        prompt,
        subject,
        answer,
        settings=settings,
        occurrence=occurrence,
        counterfactual=counterfactual,
    )
    grids = {name: grid_of(model, name, inputs, settings.window) for name in mediators}
    found = sweep(
        model,
        inputs.corrupted,
        inputs.clean,
        [cell for cells in grids.values() for cell in cells],
        {"answer": Metric("probability", inputs.answer_ids)},
        memory=settings.memory,
    )
    parts = found.values["answer"].split([len(cells) for cells in grids.values()])
    high, lows = found.donor["answer"].item(), found.base["answer"].numpy()
    return {
        name: trace_result(tokenizer, inputs, name, part.numpy(), high, lows)
        for name, part in zip(grids, parts, strict=True)
    }


def trace_result(
    tokenizer: PreTrainedTokenizerBase,
    inputs: TraceInputs,
    mediator: Mediator,
    values: Floats,
    high: float,
    lows: Floats,
    *,
    exact: bool = True,
) -> TraceResult:
    """Make a result of the values, [T * L, S], of a mediator's cells, in the order of ``grid_of``."""
    tokens, answer_ids = inputs.tokens, inputs.answer_ids
    sample_scores = values.T.reshape(len(lows), len(tokens.ids), -1).copy()
    return TraceResult(
        scores=sample_scores.mean(axis=0),
        low=float(lows.mean()),
        high=high,
        answer_id=answer_ids[0],
        answer_ids=answer_ids,
        answer=tokenizer.decode(list(answer_ids), clean_up_tokenization_spaces=False),
        subject_span=inputs.span,
        tokens=tuple(tokens.pieces),
        token_ids=tuple(tokens.ids),
        mediator=mediator,
        sample_scores=sample_scores,
        sample_lows=lows,
        exact=np.full(sample_scores.shape[1:], exact),
    )


def check_mediators(mediators: Sequence[Mediator]) -> None:
    """Check that mediators exist.

    Raises:
        InputError: naming the one that does not.
    """
    for mediator in mediators:
        if mediator not in MEDIATORS:
            raise InputError(unknown("mediator", mediator, MEDIATORS))


def grid_of(model: PreTrainedModel, mediator: Mediator, inputs: TraceInputs, window: int) -> list[Cell]:
    """Return a mediator's cells, token by token and layer by layer."""
    mediation = MEDIATORS[mediator]
    return grid(
        mediation.site,
        n_tokens=len(inputs.tokens.ids),
        n_layers=model.config.num_hidden_layers,
        window=window if mediation.windowed else 1,
        pins=mediation.pins,
    )
