"""What causal tracing runs on: a prompt, its corrupted embeddings, and the tokens that are read.

The tracing of a prompt, exact or approximate, starts here: the subject is found among the tokens, noise is drawn for
it, and the answer is put into tokens. Meng et al. 2022 (ROME), section 2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import input_device
from interpret.errors import InputError, unknown
from interpret.prompts.chat import as_it_is
from interpret.prompts.subjects import subject_span, tokenised
from interpret.prompts.tokens import TokenisedPrompt, continuation, tokenise
from interpret.tracing.mediators import ActsOn
from interpret.tracing.noise import corrupt, noise_of, parse_noise

Target = Literal["first", "whole"]
TARGETS = ("first", "whole")


@dataclass(frozen=True)
class TraceSettings:
    """How prompts are corrupted and what is read; the same for a whole data set."""

    noise: str | float | ArrayLike = "s3"
    """A specification (see ``interpret.tracing.noise``), or the noise itself, [samples, subject tokens, width]."""
    samples: int = 10
    """S, how many draws of noise; a ready array brings its own number."""
    seed: int = 0
    """Of the draws; every run of a prompt sees the same ones."""
    replace: bool = False
    """The noise stands in place of the embeddings instead of being added to them."""
    window: int = 10
    """How many layers mediators with a window, such as ``attn_window``, restore around each layer."""
    target: Target = "first"
    """Read the first token of the answer, or the whole answer."""
    reference_texts: tuple[str, ...] | None = None
    """The texts whose embeddings set the size of the noise; ROME takes the subjects of the whole data set. By
    default ``s`` takes the prompt's own subject, ``m`` and ``t`` the whole vocabulary."""
    memory: int | None = None
    """Bytes, see ``run_sweep``."""


@dataclass(frozen=True)
class TraceInputs:
    """One prompt, made ready: K answer tokens, T prompt tokens, S noise samples."""

    tokens: TokenisedPrompt
    """The prompt's T tokens."""
    span: tuple[int, int]
    """First and one past the last token of the subject."""
    answer_ids: tuple[int, ...]
    """[K], the tokens that are read."""
    clean: Tensor
    """[1, T + K - 1, width], word embeddings of the prompt and of all but the last token of the answer."""
    corrupted: Tensor
    """[S, T + K - 1, width], the same with noise on the subject, or those of the counterfactual."""

    def base_and_donor(self, run: ActsOn) -> tuple[Tensor, Tensor]:
        """Return the runs that cells patch, and those that restored values come from, for mediators of one run."""
        if run == "corrupted":
            return self.corrupted, self.clean
        return self.clean.expand(len(self.corrupted), -1, -1), self.corrupted


@torch.no_grad()
def trace_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | None,
    *,
    settings: TraceSettings,
    occurrence: int | None,
    counterfactual: str | None,
) -> TraceInputs:
    """Make one prompt ready; the arguments are those of ``tracing.trace_mediators``.

    Raises:
        InputError: if an argument is wrong or the arguments do not fit together.
    """
    check_settings(settings)
    tokens = tokenised(tokenizer, prompt, subject, occurrence)
    answer_ids = _answer_ids(model, tokenizer, tokens, answer, settings.target)
    span, clean = subject_span(tokens), _embeddings(model, [*tokens.ids, *answer_ids[:-1]])
    if counterfactual is not None:
        other = _counterfactual_ids(tokenizer, counterfactual, tokens)
        return TraceInputs(tokens, span, answer_ids, clean, _embeddings(model, [*other, *answer_ids[:-1]]))
    shape = (settings.samples, span[1] - span[0], clean.shape[-1])
    noise = noise_of(
        settings.noise, shape, model, tokenizer, subject, texts=settings.reference_texts, seed=settings.seed
    )
    return TraceInputs(tokens, span, answer_ids, clean, corrupt(clean, span, noise, replace=settings.replace))


def check_settings(settings: TraceSettings) -> None:
    """Check what needs no model.

    Raises:
        InputError: naming the setting.
    """
    if isinstance(settings.noise, (str, int, float)):
        parse_noise(settings.noise)
    if settings.target not in TARGETS:
        raise InputError(unknown("target", settings.target, TARGETS))
    if settings.samples < 1:
        raise InputError(f"samples is {settings.samples}; give at least 1")
    if settings.window < 1:
        raise InputError(f"window is {settings.window}; give at least 1 layer")


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
    expected = continuation(tokenizer, as_it_is(tokens.text), answer)
    return expected if target == "whole" else expected[:1]


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
