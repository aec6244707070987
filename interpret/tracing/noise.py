"""How the subject's embeddings are corrupted: noise specifications, and seeded draws from them.

The codes are ROME's (Meng et al. 2022, section 2.1 and appendix B; ``causal_trace.py --noise_level``):

=========  ==========================================================================================
``s<f>``   Gaussian, f times the standard deviation of the embeddings of the reference texts
number     Gaussian of that standard deviation
``u<f>``   uniform between -f and f
``m``      Gaussian with the mean and the covariance of the embeddings of the reference texts
``t<df>``  Student's t with df degrees of freedom and that mean and covariance; heavier tails
=========  ==========================================================================================
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import embedding_table, input_device
from interpret.errors import InputError
from interpret.stats import Floats

CODES = "'s3' (3 standard deviations of the embeddings), 0.1, 'u0.5', 'm' or 't3'"


@dataclass(frozen=True)
class NoiseSpec:
    """A noise specification, read."""

    code: str
    """``s``, ``u``, ``m``, ``t``, or "" for a Gaussian of absolute size."""
    size: float
    """A factor, a size or degrees of freedom; 1 for ``m``."""


def parse_noise(spec: str | float) -> NoiseSpec:
    """Read a noise specification.

    Raises:
        InputError: if it is none, or asks for no noise at all.

    >>> parse_noise("s3"), parse_noise(1)
    (NoiseSpec(code='s', size=3.0), NoiseSpec(code='', size=1.0))
    """
    match = re.fullmatch(r"([sut]?)(\d+\.?\d*(?:e-?\d+)?|\.\d+)|(m)|(s)", str(spec))
    if match is None:
        raise InputError(f"noise {spec!r} is not understood; give {CODES}")
    read = NoiseSpec(match[1] or match[3] or match[4] or "", float(match[2] or 1))
    if read.size == 0:
        raise InputError(f"noise {spec!r} leaves the subject as it is; give more than 0")
    if read.code == "t" and read.size <= 2:
        raise InputError(f"noise {spec!r}: only above 2 degrees of freedom does the covariance exist")
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
    """Return noise, [samples, subject tokens, width], from a specification or an array of it.

    Args:
        noise: the specification, or the noise itself, whatever its number of samples.
        shape: (samples, subject tokens, width of the embeddings).
        model: brings the embeddings.
        tokenizer: of the model.
        subject: sets the size of ``s`` noise where no texts are given.
        texts: the texts that set the size of ``s``, ``m`` and ``t`` noise; by default the subject for ``s``, and
            the whole vocabulary for ``m`` and ``t``.
        seed: of the draws.

    Raises:
        InputError: if the specification is none, the array does not fit, or the noise is 0.
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
    """Check noise that was given as an array."""
    array = torch.as_tensor(noise).detach().cpu().double().numpy()
    if array.ndim != 3 or array.shape[1:] != shape[1:] or not len(array):
        raise InputError(
            f"noise has shape {array.shape}; this prompt needs [samples, {shape[1]} subject tokens, {shape[2]}]"
        )
    if not np.isfinite(array).all():
        raise InputError("noise has entries that are not finite numbers")
    if not array.any():
        raise InputError("noise is 0 everywhere and leaves the subject as it is")
    return array


def corrupt(embeddings: Tensor, span: tuple[int, int], noise: Floats, *, replace: bool = False) -> Tensor:
    """Return embeddings, [1, T, width], with noise on the tokens of a span: [S, T, width].

    Args:
        embeddings: of the clean run, left as they are.
        span: first and one past the last token.
        noise: [S, tokens of the span, width].
        replace: put the noise in place of the embeddings instead of adding it.
    """
    corrupted = embeddings.repeat(len(noise), 1, 1)
    values = torch.from_numpy(noise).to(embeddings)
    tokens = slice(*span)
    corrupted[:, tokens] = values if replace else corrupted[:, tokens] + values
    return corrupted


def embedding_rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Return the word embeddings, [N, width] float64, of every token of some texts, each tokenised by itself.

    Special tokens are left out.
    """
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    if not ids:
        raise InputError("the texts that set the size of the noise have no tokens")
    rows = model.get_input_embeddings()(torch.tensor(ids, device=input_device(model)))
    return rows.detach().cpu().double()


def embedding_sigma(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return the standard deviation over all elements of the word embeddings of some texts.

    ROME takes the subjects of the whole data set (``collect_embedding_std``).
    """
    return float(embedding_rows(model, tokenizer, texts).std())


def draw(spec: NoiseSpec, shape: tuple[int, int, int], rows: Tensor, seed: int) -> Floats:
    """Draw noise for every sample and subject token.

    With ``seed=1`` Gaussian and uniform noise is that of ROME's code.

    Args:
        spec: what kind of noise.
        shape: (samples, subject tokens, width of the embeddings).
        rows: [N, width], the embeddings that set the size of ``s``, ``m`` and ``t``.
        seed: of the draws.

    Returns:
        [samples, subject tokens, width] float64.
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
    chi_squared = random.chisquare(spec.size, (*shape[:2], 1))  # one for each token of each sample
    return np.sqrt((spec.size - 2) / chi_squared) * correlated


def _root_of_covariance(rows: Tensor) -> Floats:
    """Return a matrix, [width, width], that gives normal draws the covariance of ``rows``."""
    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0))
    return (values.clamp_min(0).sqrt()[:, None] * vectors.T).numpy()
