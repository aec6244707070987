"""Traces of a tiny model of each kind, and the embeddings of their runs."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from interpret.tracing.calls import trace
from interpret.tracing.result import TraceResult
from reference.kinds import KINDS, MORE_KINDS
from reference.plain_attribution import embeddings_of
from reference.tiny import wide_model
from reference.toy_tokenizers import byte_level

PROMPT, SUBJECT = "The Eiffel Tower is in", "Eiffel Tower"
CLOSE = {"rtol": 1e-5, "atol": 1e-9}
SAMPLES = 3
MODELS = {kind: wide_model(kind) for kind in (*KINDS, *MORE_KINDS)}
TOKENIZER = byte_level()


def traced(kind: str = "llama", **options: Any) -> TraceResult:
    """Trace the prompt with a model of a kind."""
    return trace(MODELS[kind], TOKENIZER, PROMPT, SUBJECT, **({"samples": SAMPLES} | options))


def embedded(model: PreTrainedModel, ids: Iterable[int]) -> Tensor:
    """Return the word embeddings of a text, [1, T, width]."""
    return embeddings_of(model, list(ids))


def corrupted_embeddings(
    model: PreTrainedModel, result: TraceResult, noise: NDArray[np.float64], *, replace: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the clean embeddings, [1, T, width], and those with noise on the subject, [S, T, width]."""
    clean = embedded(model, result.token_ids)
    corrupted = clean.repeat(len(noise), 1, 1)
    for sample, of_tokens in enumerate(noise):
        for token, vector in zip(range(*result.subject_span), of_tokens, strict=True):
            vector = torch.from_numpy(vector).float()
            corrupted[sample, token] = vector if replace else corrupted[sample, token] + vector
    return clean, corrupted


def probabilities(logits: Tensor, answer_id: int) -> NDArray[np.float64]:
    """Return the probability of the answer after the last token, [S], from logits, [S, T, V]."""
    return logits[:, -1].double().softmax(-1)[:, answer_id].numpy()


def ready_noise(model: PreTrainedModel, n_tokens: int, seed: int = 4, samples: int = SAMPLES) -> NDArray[np.float64]:
    """Return normal noise with a standard deviation of 0.5, [S, n_tokens, width]."""
    width = model.get_input_embeddings().weight.shape[1]
    return np.random.default_rng(seed).normal(size=(samples, n_tokens, width)) * 0.5
