"""Corrupt the subject's embeddings: noise specifications, and noise samples drawn with a random seed.

The codes are ROME's (Meng et al. 2022, section 2.1 and appendix B; ``causal_trace.py --noise_level``):

=========  ==========================================================================================
``s<f>``   Gaussian, f times the standard deviation of the embeddings of the reference texts; ``s`` is ``s1``
number     Gaussian with that standard deviation
``u<f>``   uniform between -f and f
``m``      Gaussian with the mean and the covariance of the embeddings of the reference texts
``t<df>``  Student's t with df degrees of freedom and that mean and covariance; heavier tails
=========  ==========================================================================================

Standard deviation and covariance are the unbiased estimates (divided by n - 1), as those of ROME's ``Covariance``.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import embedding_table, input_device, word_embeddings
from interpret.errors import InputError, brief
from interpret.prompts.encoding import token_ids
from interpret.stats import Floats

CODES = "'s3' (3 standard deviations of the embeddings), 0.1, 'u0.5', 'm' or 't3'"


@dataclass(frozen=True)
class NoiseSpec:
    """A parsed noise specification."""

    code: str
    """``s``, ``u``, ``m``, ``t``, or "" for a Gaussian whose standard deviation is given as a number."""
    size: float
    """The factor (``s``), bound (``u``), degrees of freedom (``t``) or standard deviation (""); 1 for ``m``."""


def parse_noise(spec: str | float) -> NoiseSpec:
    """Parse a noise specification.

    Raises:
        InputError: if it is invalid, if the noise would be 0, or if ``t`` noise would have no covariance.

    >>> parse_noise("s3"), parse_noise(1)
    (NoiseSpec(code='s', size=3.0), NoiseSpec(code='', size=1.0))
    """
    match = re.fullmatch(r"(?P<code>[sut]?)(?P<size>\d+\.?\d*(?:e-?\d+)?|\.\d+)|(?P<alone>[ms])", str(spec))
    if match is None:
        raise InputError(f"noise {brief(spec)} is not understood; give {CODES}")
    read = NoiseSpec(match["alone"] or match["code"], float(match["size"] or 1))
    if not math.isfinite(read.size):
        raise InputError(f"noise {brief(spec)} is too large for a number; give {CODES}")
    if read.size == 0:
        raise InputError(f"noise {brief(spec)} does not change the subject; give more than 0")
    if read.code == "t" and read.size <= 2:
        raise InputError(f"noise {brief(spec)} has no covariance; give more than 2 degrees of freedom")
    return read


def noise_of(
    noise: str | float | ArrayLike,
    shape: tuple[int, int, int],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subject: str,
    *,
    texts: Sequence[str] | None = None,
    seed: int = 0,
) -> Floats:
    """Return noise, [samples, subject tokens, width], from a specification or an array.

    Args:
        noise: a specification, or the noise itself, with any number of samples.
        shape: (samples, subject tokens, width of the embeddings).
        model: the model whose embeddings set the size of the noise.
        tokenizer: the model's tokenizer.
        subject: the subject; it sets the size of ``s`` noise if no texts are given.
        texts: texts that set the size of ``s``, ``m`` and ``t`` noise; by default the subject for ``s``, and
            the whole vocabulary for ``m`` and ``t``.
        seed: random seed.

    Raises:
        InputError: if the specification is invalid, the array has the wrong shape, or the noise is 0 or not finite.
    """
    if not isinstance(noise, (str, int, float)):
        return _ready(noise, shape)
    spec = parse_noise(noise)
    if texts is None and spec.code in ("m", "t"):
        rows = embedding_table(model).cpu().double()
    else:
        rows = embedding_rows(model, tokenizer, texts or (subject,))
    return draw(spec, shape, rows, seed)


def _ready(noise: ArrayLike, shape: tuple[int, int, int]) -> Floats:
    """Check noise that is given as an array."""
    array = torch.as_tensor(noise).detach().cpu().double().numpy()
    if array.ndim != 3 or array.shape[1:] != shape[1:] or not len(array):
        raise InputError(
            f"noise has shape {array.shape}; this prompt needs [samples, {shape[1]} subject tokens, {shape[2]}]"
        )
    if not np.isfinite(array).all():
        raise InputError("noise contains NaN or infinity")
    if not array.any():
        raise InputError("noise is 0 everywhere and does not change the subject")
    return array


def corrupt(embeddings: Tensor, span: tuple[int, int], noise: Floats, *, replace: bool = False) -> Tensor:
    """Return embeddings with noise on the tokens of a span, [S, T, width].

    Args:
        embeddings: the embeddings of the clean run, [1, T, width]; not changed.
        span: first and one past the last token.
        noise: the noise, [S, tokens of the span, width].
        replace: replace the embeddings by the noise instead of adding it.
    """
    corrupted = embeddings.repeat(len(noise), 1, 1)
    values = torch.from_numpy(noise).to(embeddings)
    tokens = slice(*span)
    corrupted[:, tokens] = values if replace else corrupted[:, tokens] + values
    return corrupted


def embedding_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return the word embeddings, [N, width] float64, of all tokens of some texts, each tokenised separately.

    Special tokens are left out.

    Raises:
        InputError: if the texts have no tokens.
    """
    ids = [token for text in texts for token in token_ids(tokenizer, text, add_special_tokens=False)]
    if not ids:
        raise InputError("the texts that set the size of the noise have no tokens")
    rows = word_embeddings(model, torch.tensor(ids, device=input_device(model)))
    return rows.detach().cpu().double()


def embedding_sigma(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the standard deviation over all elements of the word embeddings of some texts.

    ROME uses the subjects of the whole data set (``collect_embedding_std``).
    """
    return float(embedding_rows(model, tokenizer, texts).std())


def draw(spec: NoiseSpec, shape: tuple[int, int, int], rows: Tensor, seed: int) -> Floats:
    """Draw noise for every sample and subject token.

    With ``seed=1``, Gaussian and uniform noise equal those of ROME's code.

    Args:
        spec: the kind and size of the noise.
        shape: (samples, subject tokens, width of the embeddings).
        rows: [N, width], the embeddings that set the size of ``s``, ``m`` and ``t`` noise.
        seed: random seed.

    Returns:
        [samples, subject tokens, width] float64.

    Raises:
        InputError: for ``m`` or ``t`` noise if there are fewer than two rows, which have no covariance.
    """
    random = np.random.RandomState(seed)
    if spec.code == "u":
        return random.uniform(-1.0, 1.0, shape) * spec.size
    normal = random.randn(*shape)
    if spec.code == "":
        return normal * spec.size
    if spec.code == "s":
        return normal * spec.size * float(rows.std())
    correlated = normal @ _root_of_covariance(rows) + rows.mean(dim=0).numpy()
    if spec.code == "m":
        return correlated
    chi_squared = random.chisquare(spec.size, (*shape[:2], 1))  # one per token of each sample
    return np.sqrt((spec.size - 2) / chi_squared) * correlated


def _root_of_covariance(rows: Tensor) -> Floats:
    """Return a matrix, [width, width], that gives normal draws the covariance of ``rows``."""
    if len(rows) < 2:
        raise InputError("noise 'm' or 't' needs the embeddings of at least 2 tokens; give longer reference texts")
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=1))
    return (values.clamp_min(0).sqrt()[:, None] * vectors.T).numpy()
