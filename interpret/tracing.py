"""Causal tracing: which hidden states, restored in a corrupted run, bring the answer back.

Meng et al., "Locating and Editing Factual Associations in GPT" (ROME, 2022), section 2. Three kinds of runs: clean;
corrupted, with noise on the embeddings of the subject; and corrupted with restoration of one state. A score is the
mean over noise samples of the probability of the answer. On the sweep engine; its result is a ``TraceResult``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import input_device
from interpret.chat import ChatText, as_it_is
from interpret.errors import InputError, unknown
from interpret.noise import corrupt, noise_of
from interpret.spans import TokenisedPrompt, tokenise
from interpret.sweep import Cell, Metric, Pin, Site, grid, sweep

Floats = NDArray[np.float64]
Mediator = Literal["hidden", "attn_severed", "mlp_severed", "attn_window", "mlp_window"]
Target = Literal["first", "whole"]
TARGETS = ("first", "whole")


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
class TraceSettings:
    """How prompts are corrupted and what is read; the same for a whole data set."""

    noise: str | float | ArrayLike = "s3"
    """A specification (see ``interpret.noise``), or the noise itself, [samples, subject tokens, width]."""
    samples: int = 10
    """S, how many draws of noise; a ready array brings its own number."""
    seed: int = 0
    """Of the draws; every run of a prompt sees the same ones."""
    replace: bool = False
    """The noise stands in place of the embeddings instead of being added to them."""
    window: int = 10
    """How many layers ``attn_window`` and ``mlp_window`` restore, around each layer."""
    target: Target = "first"
    """Read the first token of the answer, or the whole answer."""
    reference_texts: tuple[str, ...] | None = None
    """The texts whose embeddings set the size of the noise; ROME takes the subjects of the whole data set. By
    default ``s`` takes the prompt's own subject, ``m`` and ``t`` the whole vocabulary."""
    memory: int | None = None
    """Bytes, see ``sweep``."""


@dataclass(frozen=True)
class TraceResult:
    """The trace of one prompt by one mediator."""

    scores: Floats
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
    sample_scores: Floats
    """[S, T, L], the scores of each noise sample."""
    sample_lows: Floats
    """[S], the corrupted runs' probabilities."""

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
        window: how many layers the windows have.
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
    _check(mediators, settings)
    tokens = _tokenised(tokenizer, prompt, subject, occurrence)
    answer_ids = _answer_ids(model, tokenizer, tokens, answer, settings.target)
    clean = _embeddings(model, [*tokens.ids, *answer_ids[:-1]])
    if counterfactual is None:
        span = _span(tokens)
        shape = (settings.samples, span[1] - span[0], clean.shape[-1])
        noise = noise_of(
            settings.noise, shape, model, tokenizer, subject, texts=settings.reference_texts, seed=settings.seed
        )
        corrupted = corrupt(clean, span, noise, replace=settings.replace)
    else:
        other = _counterfactual_ids(tokenizer, counterfactual, tokens)
        corrupted = _embeddings(model, [*other, *answer_ids[:-1]])
    grids = {name: _grid(model, MEDIATORS[name], len(tokens.ids), settings.window) for name in mediators}
    found = sweep(
        model,
        corrupted,
        clean,
        [cell for cells in grids.values() for cell in cells],
        {"answer": Metric("probability", answer_ids)},
        memory=settings.memory,
    )
    parts = found.values["answer"].split([len(cells) for cells in grids.values()])
    high, lows = found.donor["answer"].item(), found.base["answer"].numpy()
    return {
        name: _result(tokenizer, tokens, answer_ids, name, part.numpy(), high, lows)
        for name, part in zip(grids, parts, strict=True)
    }


def _result(
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenisedPrompt,
    answer_ids: tuple[int, ...],
    mediator: Mediator,
    values: Floats,
    high: float,
    lows: Floats,
) -> TraceResult:
    """Make a result of the values, [T * L, S], of a mediator's cells."""
    sample_scores = values.T.reshape(len(lows), len(tokens.ids), -1).copy()
    return TraceResult(
        scores=sample_scores.mean(axis=0),
        low=float(lows.mean()),
        high=high,
        answer_id=answer_ids[0],
        answer_ids=answer_ids,
        answer=tokenizer.decode(list(answer_ids), clean_up_tokenization_spaces=False),
        subject_span=_span(tokens),
        tokens=tuple(tokens.pieces),
        token_ids=tuple(tokens.ids),
        mediator=mediator,
        sample_scores=sample_scores,
        sample_lows=lows,
    )


def _check(mediators: Sequence[Mediator], settings: TraceSettings) -> None:
    """Check what needs no model."""
    for mediator in mediators:
        if mediator not in MEDIATORS:
            raise InputError(unknown("mediator", mediator, MEDIATORS))
    if settings.target not in TARGETS:
        raise InputError(unknown("target", settings.target, TARGETS))
    if settings.samples < 1:
        raise InputError(f"samples is {settings.samples}; give at least 1")
    if settings.window < 1:
        raise InputError(f"window is {settings.window}; give at least 1 layer")


def _grid(model: PreTrainedModel, mediation: _Mediation, n_tokens: int, window: int) -> list[Cell]:
    """Return a mediator's cells, token by token and layer by layer."""
    return grid(
        mediation.site,
        n_tokens=n_tokens,
        n_layers=model.config.num_hidden_layers,
        window=window if mediation.windowed else 1,
        pins=mediation.pins,
    )


# ------------------------------------------------------------------------------------ prompt, subject, answer


def _tokenised(
    tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str, occurrence: int | None
) -> TokenisedPrompt:
    """Tokenise a prompt and find the chosen occurrence of its subject."""
    start = _choose(prompt, subject, occurrence)
    # The span of the "message" is the chosen occurrence alone, in which the subject is found once.
    chosen = ChatText(prompt, (start, start + len(subject)), add_special_tokens=True)
    tokens = tokenise(tokenizer, chosen, subject)
    if len(tokens.ids) < 2:
        raise InputError(f"prompt {prompt!r} is a single token; tracing needs the subject and what is said of it")
    return tokens


def _choose(prompt: str, subject: str, occurrence: int | None) -> int:
    """Return where in the prompt the chosen occurrence of the subject starts."""
    if not subject.strip():
        raise InputError("the subject is empty; give the part of the prompt to corrupt")
    starts = [start for start in range(len(prompt)) if prompt.startswith(subject, start)]
    if not starts:
        raise InputError(f"subject {subject!r} is not a part of the prompt {prompt!r}")
    if occurrence is None:
        if len(starts) > 1:
            raise InputError(
                f"subject {subject!r} occurs {len(starts)} times in the prompt {prompt!r}; "
                f"choose with occurrence=0 to {len(starts) - 1}"
            )
        return starts[0]
    if not 0 <= occurrence < len(starts):
        raise InputError(f"occurrence {occurrence} of subject {subject!r} does not exist; there are {len(starts)}")
    return starts[occurrence]


def _span(tokens: TokenisedPrompt) -> tuple[int, int]:
    """Return the first and one past the last token of the subject."""
    if not tokens.subject:
        raise InputError(f"the subject has no tokens in the prompt {tokens.text!r}")
    return tokens.subject[0], tokens.subject[-1] + 1


def _answer_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenisedPrompt,
    answer: str | None,
    target: Target,
) -> tuple[int, ...]:
    """Return the tokens that are read: those of the answer, or the likeliest next one."""
    if answer is None:
        prompt = torch.tensor([list(tokens.ids)], device=input_device(model))
        return (int(model(input_ids=prompt, use_cache=False).logits[0, -1].argmax()),)
    expected = _continuation(tokenizer, tokens, answer)
    return expected if target == "whole" else expected[:1]


def _continuation(tokenizer: PreTrainedTokenizerBase, tokens: TokenisedPrompt, answer: str) -> tuple[int, ...]:
    """Return the tokens an answer has after the prompt, after a space where neither brings one."""
    if not answer.strip():
        raise InputError(f"answer {answer!r} has no tokens; leave it out to take the likeliest next token")
    space = "" if answer[0].isspace() or tokens.text[-1].isspace() else " "
    both = tokenise(tokenizer, as_it_is(tokens.text + space + answer)).ids
    if list(both[: len(tokens.ids)]) != list(tokens.ids):
        raise InputError(
            f"answer {answer!r} grows together with the end of the prompt {tokens.text!r} into other tokens; "
            "end the prompt with a whole word, without a space after it"
        )
    return tuple(both[len(tokens.ids) :])


def _counterfactual_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: TokenisedPrompt) -> Sequence[int]:
    other = tokenise(tokenizer, as_it_is(prompt)).ids
    if len(other) != len(tokens.ids):
        raise InputError(
            f"the counterfactual {prompt!r} has {len(other)} tokens, the prompt {tokens.text!r} {len(tokens.ids)}: "
            "values are restored token by token, so both need the same length"
        )
    return other


def _embeddings(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the word embeddings of one sequence, [1, T, width]."""
    return model.get_input_embeddings()(torch.tensor([list(ids)], device=input_device(model)))
