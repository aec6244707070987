"""Prepare the inputs of a causal trace: the prompt's tokens, clean and corrupted embeddings, and the answer's tokens.

Every trace of a prompt, exact or approximate, starts here: the subject is located in the tokens, noise is drawn for it,
and the answer is tokenised. Meng et al. 2022 (ROME), section 2.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import check_decoder_only, check_length, input_device, word_embeddings
from interpret.errors import InputError, unknown
from interpret.finite import MODEL_GIVES_NAN
from interpret.prompts.chat import ChatText, framed
from interpret.prompts.subjects import subject_span, tokenised
from interpret.prompts.tokens import TokenisedPrompt, following, tokenise
from interpret.sweep.metrics import Kind, Metric
from interpret.tracing.mediators import ActsOn
from interpret.tracing.metrics import check_trace_metrics, trace_metrics
from interpret.tracing.noise import corrupt, noise_of, parse_noise

AnswerTokens = Literal["first", "whole"]
ANSWER_TOKENS = ("first", "whole")


@dataclass(frozen=True)
class TraceSettings:
    """How prompts are corrupted and which tokens are read; the same for a whole data set."""

    noise: str | float | ArrayLike = "s3"
    """A noise specification (see ``interpret.tracing.noise``), or the noise itself, [S, subject tokens, width]."""
    samples: int = 10
    """S, the number of noise samples; not used if the noise is given as an array."""
    seed: int = 0
    """Random seed of the noise; all runs of a prompt use the same noise."""
    replace: bool = False
    """Whether the noise replaces the embeddings instead of being added to them."""
    window: int = 10
    """Number of layers that mediators with a window, such as ``attn_window``, restore around each layer."""
    answer_tokens: AnswerTokens = "first"
    """Whether the first token of the answer or the whole answer is read."""
    metric: Kind = "probability"
    """What is read: ``probability``, ``log_probability``, ``logit``, ``logit_difference``, for which the prompt needs a
    foil, or ``rank``, 1 for the most likely token."""
    reference_texts: tuple[str, ...] | None = None
    """Texts whose embeddings set the size of the noise; in ROME, the subjects of the whole data set. By default, ``s``
    uses the prompt's own subject, ``m`` and ``t`` the whole vocabulary."""
    chat_template: str | None = None
    """Template that makes the prompt the user's message of a chat: ``model`` for the model's own, or a text that
    contains ``{prompt}``; None to read the prompt as it is."""
    memory: int | None = None
    """Bytes that a sweep may use, see ``run_sweep``; None to choose from the device's memory."""


@dataclass(frozen=True)
class TraceInputs:
    """The inputs for tracing one prompt: T prompt tokens, K answer tokens, S noise samples."""

    tokens: TokenisedPrompt
    """The prompt's T tokens."""
    span: tuple[int, int]
    """Position of the first token of the subject, and one past the last."""
    metrics: tuple[Metric, ...]
    """What is read, of K answer tokens; at least one metric."""
    clean: Tensor
    """[1, T + K - 1, width], word embeddings of the prompt and of all but the last token of the answer."""
    corrupted: Tensor
    """[S, T + K - 1, width], the same with noise on the subject; or those of the counterfactual, with S = 1."""

    @property
    def metric(self) -> Metric:
        """The first metric."""
        return self.metrics[0]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """[K], ids of the answer tokens that are read."""
        return self.metric.answer

    def base_and_donor(self, run: ActsOn) -> tuple[Tensor, Tensor]:
        """Return base and donor runs for mediators that act on ``run``: cells put values of the donor into the base."""
        if run == "corrupted":
            return self.corrupted, self.clean
        return self.clean.expand(len(self.corrupted), -1, -1), self.corrupted


@torch.no_grad()
def trace_inputs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    subject: str,
    answer: str | Sequence[int] | None,
    *,
    settings: TraceSettings,
    occurrence: int | None,
    counterfactual: str | None,
    foil: str | Sequence[int] | None = None,
    metrics: Sequence[Kind] | None = None,
) -> TraceInputs:
    """Prepare one prompt; the arguments are those of ``trace_mediators``, and the metrics, if not that of the settings.

    Raises:
        InputError: if an argument is invalid or the arguments do not fit together.
        UnsupportedModelError: if the model has an encoder.
    """
    check_settings(settings)
    check_decoder_only(model)
    text = framed(tokenizer, prompt, settings.chat_template)
    tokens = tokenised(tokenizer, prompt, subject, occurrence, settings.chat_template)
    check_length(model, "the prompt", len(tokens.ids))
    answer_ids = read_ids(model, tokenizer, text, tokens, answer, settings.answer_tokens)
    # The last token of the answer is not read.
    check_length(model, "the prompt with its answer", len(tokens.ids) + len(answer_ids) - 1)
    read = trace_metrics(tokenizer, text, answer_ids, foil, metrics or [settings.metric]).values()
    span, clean = subject_span(tokens), embeddings_of(model, [*tokens.ids, *answer_ids[:-1]])
    if counterfactual is not None:
        other = _counterfactual_ids(tokenizer, framed(tokenizer, counterfactual, settings.chat_template), tokens)
        return TraceInputs(tokens, span, tuple(read), clean, embeddings_of(model, [*other, *answer_ids[:-1]]))
    shape = (settings.samples, span[1] - span[0], clean.shape[-1])
    noise = noise_of(
        settings.noise, shape, model, tokenizer, subject, texts=settings.reference_texts, seed=settings.seed
    )
    return TraceInputs(tokens, span, tuple(read), clean, corrupt(clean, span, noise, replace=settings.replace))


def check_settings(settings: TraceSettings) -> None:
    """Check the settings that can be checked without a model.

    Raises:
        InputError: if a setting is invalid; the message names it.
    """
    if isinstance(settings.noise, (str, int, float)):
        parse_noise(settings.noise)
    check_answer_tokens(settings.answer_tokens)
    check_trace_metrics([settings.metric])
    if settings.samples < 1:
        raise InputError(f"samples is {settings.samples}; give at least 1")
    if settings.window < 1:
        raise InputError(f"window is {settings.window}; give at least 1 layer")


def check_answer_tokens(answer_tokens: str) -> None:
    """Check which tokens of the answer are read.

    Raises:
        InputError: if the word is unknown.
    """
    if answer_tokens not in ANSWER_TOKENS:
        raise InputError(unknown("answer_tokens", answer_tokens, ANSWER_TOKENS))


def read_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: ChatText,
    tokens: TokenisedPrompt,
    answer: str | Sequence[int] | None,
    read: AnswerTokens,
) -> tuple[int, ...]:
    """Return the ids of the tokens that are read: those of the answer, or the most likely next token."""
    if answer is None:
        prompt = torch.tensor([list(tokens.ids)], device=input_device(model))
        logits = model(input_ids=prompt, use_cache=False).logits[0, -1]
        if not (logits < torch.inf).all():
            raise InputError(f"{tokens.text!r} has no most likely next token: {MODEL_GIVES_NAN}, or give an answer")
        return (int(logits.argmax()),)
    expected = following(tokenizer, text, answer)
    return expected if read == "whole" else expected[:1]


def _counterfactual_ids(tokenizer: PreTrainedTokenizerBase, text: ChatText, tokens: TokenisedPrompt) -> Sequence[int]:
    other = tokenise(tokenizer, text).ids
    if len(other) != len(tokens.ids):
        raise InputError(
            f"the counterfactual {text.text!r} has {len(other)} tokens, the prompt {tokens.text!r} {len(tokens.ids)}: "
            "values are restored token by token, so both need the same length"
        )
    return other


def embeddings_of(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Return the word embeddings of one sequence, [1, T, width]."""
    return word_embeddings(model, torch.tensor([list(ids)], device=input_device(model)))
