"""Read the residual stream after every layer by a lens: as a distribution over the next token.

``lenses`` says what a lens is. The logit lens (nostalgebraist, 2020, "interpreting GPT: the logit lens") decodes the
stream as the model decodes its last state: logits = unembedding(final norm(stream)).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import ActivationCache
from interpret.activations.lookup import check_holds, columns_of, token_id
from interpret.anatomy import anatomy_of, unembedding_size, unwrapping
from interpret.anatomy.passes import grad_mode
from interpret.errors import InputError
from interpret.finite import left_out, readable, warn
from interpret.probing.lens_maps import TunedLens
from interpret.probing.lenses import Lens, divergence, identity_lens_of, logit_lens_of, mapped_lens_of
from interpret.probing.registry import IDENTITY, LOGIT, TUNED
from interpret.probing.show import LensFrame
from interpret.prompts.spelling import piece, pieces

NO_TOKEN = -1
"""Token id of the row that stands for the most likely tokens where no logit is finite."""


@unwrapping
def logit_lens(
    model: PreTrainedModel,
    cache: ActivationCache,
    tokens: Sequence[int | str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    top: int = 5,
    positions: Sequence[int] | None = (-1,),
) -> LensFrame:
    """Apply the final norm and unembedding to the residual stream before each layer and after the last.

    Args:
        model: the causal LM that computed the cache.
        cache: contains ``resid_pre.0`` and ``resid_post.*``.
        tokens: tokens to follow through all layers: ids, or texts of a single token each (with a leading space, if the
            tokenizer keeps it).
        tokenizer: the model's tokenizer; needed if tokens are texts, and for the column ``token``, which is ""
            without it.
        top: number of most likely tokens to list besides.
        positions: positions of each prompt at which to read, -1 for the last; None for all.

    Returns:
        One row per prompt, position, layer and token, the most likely token first, with the columns ``prompt``,
        ``position`` (from 0), ``layer`` (0 to L: the number of layers the stream has passed; L gives the model's own
        logits), ``token_id``, ``token``, ``logit``, ``probability`` (0 to 1), ``rank`` (1 for the most likely; equal
        logits share a rank), ``agrees`` (whether the most likely token of the state is that of the model; None if one
        of them has no finite logit) and ``kl`` (KL(model || lens) of the state, in nats). A logit that is not finite is
        not among the most likely, and has no rank (NaN); where there is no finite logit, one row with the ``token_id``
        -1 takes their place. Such logits are counted in a warning; they make all probabilities of their position NaN.

    Raises:
        InputError: if the cache lacks an activation, or a token or position does not exist, or ``top`` does not fit.
        UnsupportedModelError: if the model's family is not supported, or logits from its states are not its own.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> from interpret.activations.cache import activation_cache
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> cache = activation_cache(model, None, [[3, 1, 4]])
    >>> logit_lens(model, cache, [7], top=0).layer.tolist()
    [0, 1, 2]
    """
    return read_by(model, cache, LOGIT, logit_lens_of(model), tokens, tokenizer=tokenizer, top=top, positions=positions)


@unwrapping
def tuned_lens(
    model: PreTrainedModel,
    cache: ActivationCache,
    maps: TunedLens,
    tokens: Sequence[int | str] = (),
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    top: int = 5,
    positions: Sequence[int] | None = (-1,),
) -> LensFrame:
    """Translate the residual stream before each layer by an affine map, then apply final norm and unembedding.

    With maps that are 0, this is the logit lens (Belrose et al. 2023, arXiv 2303.08112).

    Args:
        model: as in ``logit_lens``.
        cache: as in ``logit_lens``.
        maps: the maps of each layer, from ``load_tuned_lens``; the stream after the last layer has none.
        tokens: as in ``logit_lens``.
        tokenizer: as in ``logit_lens``.
        top: as in ``logit_lens``.
        positions: as in ``logit_lens``.

    Returns:
        The table of ``logit_lens``.

    Raises:
        InputError: as ``logit_lens``, and if the maps do not fit the model.
        UnsupportedModelError: as ``logit_lens``.
    """
    lens = mapped_lens_of(model, maps)
    return read_by(model, cache, TUNED, lens, tokens, tokenizer=tokenizer, top=top, positions=positions)


@unwrapping
def identity_lens(
    model: PreTrainedModel,
    cache: ActivationCache,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Sequence[int | str] = (),
    *,
    top: int = 5,
    positions: Sequence[int] | None = (-1,),
) -> LensFrame:
    """Insert the residual stream before each layer into a prompt that repeats tokens, and read its next token.

    The state replaces the input of its own layer at the last token of "cat -> cat, 1135 -> 1135, hello -> hello, ?",
    with line breaks for the commas (token identity patchscope: Ghandeharioun et al. 2024, arXiv 2401.06102).

    Args:
        model: as in ``logit_lens``.
        cache: as in ``logit_lens``.
        tokenizer: the model's tokenizer.
        tokens: as in ``logit_lens``.
        top: as in ``logit_lens``.
        positions: as in ``logit_lens``.

    Returns:
        The table of ``logit_lens``.

    Raises:
        InputError: as ``logit_lens``, and if the model is in training mode.
        UnsupportedModelError: as ``logit_lens``, and if states cannot be inserted into the model.
    """
    lens = identity_lens_of(model, tokenizer)
    return read_by(model, cache, IDENTITY, lens, tokens, tokenizer=tokenizer, top=top, positions=positions)


def read_by(
    model: PreTrainedModel,
    cache: ActivationCache,
    name: str,
    lens: Lens,
    tokens: Sequence[int | str],
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    top: int,
    positions: Sequence[int] | None,
) -> LensFrame:
    """Read a cache by a lens; the other arguments and the result are those of ``logit_lens``.

    Args:
        model: the causal LM that computed the cache.
        cache: contains ``resid_pre.0`` and ``resid_post.*``.
        name: name of the lens.
        lens: the lens.
        tokens: tokens to follow.
        tokenizer: the model's tokenizer.
        top: number of most likely tokens to list.
        positions: positions of each prompt at which to read.

    Raises:
        InputError: as ``logit_lens``.
    """
    n_layers, n_logits = len(anatomy_of(model).layers), unembedding_size(model)[0]
    names = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(n_layers))]
    check_holds(cache, names, ["resid_pre.0", "resid_post.*"])
    followed = [token_id(token, tokenizer, n_logits) for token in tokens]
    if not 0 <= top <= n_logits or not (top or followed):
        raise InputError(f"top is {top}: give 1 to {n_logits}, or 0 and some tokens to follow")
    columns = [columns_of(cache, prompt, positions) for prompt in range(len(cache.token_ids))]
    # Each activation is read once: a cache may be on disk.
    streams = [[stream[prompt, at] for prompt, at in enumerate(columns)] for stream in map(cache.__getitem__, names)]
    rows: list[dict[str, Any]] = []
    for prompt, at in enumerate(columns):
        with grad_mode(False):
            own = _Own.of(lens.logits(n_layers, streams[-1][prompt]).cpu())
        for layer, of_prompts in enumerate(streams):
            with grad_mode(False):
                logits = lens.logits(layer, of_prompts[prompt]).cpu()  # [P, V]
            agree, kl = own.agreement(logits), own.divergence(logits)
            for place, position in enumerate(at):
                of_state = {"agrees": agree[place], "kl": kl[place]}
                where = {"prompt": prompt, "position": position, "layer": layer}
                rows += [where | reading | of_state for reading in _readings(logits[place], followed, top)]
    frame = pd.DataFrame(rows).sort_values(["prompt", "position", "layer"], kind="stable", ignore_index=True)
    frame.insert(4, "token", _texts(tokenizer, frame["token_id"].tolist()))
    warn(left_out(frame["probability"], "probabilities", "the ranks"))
    found = LensFrame(frame)
    found.prompts, found.followed, found.lens = token_texts(cache, tokenizer), followed, name
    return found


@dataclass(frozen=True)
class _Own:
    """The model's own distribution over the next token at P positions."""

    log_p: Tensor
    """[P, V]."""
    best: list[int | None]
    """[P] the most likely token; None if no logit is finite."""

    @classmethod
    def of(cls, logits: Tensor) -> "_Own":
        return cls(logits.log_softmax(-1), _most_likely(logits))

    def agreement(self, logits: Tensor) -> list[bool | None]:
        """Return whether the most likely token of a lens, from its logits [P, V], is the model's."""
        pairs = zip(self.best, _most_likely(logits), strict=True)
        return [None if None in pair else pair[0] == pair[1] for pair in pairs]

    def divergence(self, logits: Tensor) -> list[float]:
        """Return KL(model || lens) in nats, [P], for logits of a lens, [P, V]."""
        found: list[float] = divergence(self.log_p.exp(), self.log_p, logits.log_softmax(-1)).tolist()
        return found


def _most_likely(logits: Tensor) -> list[int | None]:
    """Return the most likely token of each row, [P, V] -> [P]; None where no logit is finite."""
    best, tokens = readable(logits).max(-1)
    return [token if value > -math.inf else None for value, token in zip(best.tolist(), tokens.tolist(), strict=True)]


def _readings(logits: Tensor, followed: Sequence[int], top: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one position, given its logits, [V]; the most likely token first, unreadable logits last."""
    sound = readable(logits)
    likely = [token for token in sound.topk(top).indices.tolist() if logits[token] < math.inf]
    if top and not likely:
        yield {"token_id": NO_TOKEN, "logit": math.nan, "probability": math.nan, "rank": math.nan}
    listed = torch.tensor(list(dict.fromkeys([*likely, *followed])), dtype=torch.long)
    probabilities = logits.softmax(dim=-1)
    for token in listed[sound[listed].argsort(descending=True, stable=True)].tolist():
        logit = logits[token].item()
        yield {
            "token_id": token,
            "logit": logit,
            "probability": probabilities[token].item(),
            "rank": int((sound > logit).sum()) + 1 if logit < math.inf else math.nan,
        }


def _texts(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> list[str]:
    """Return the texts of tokens; "" without a tokenizer, and for no token."""
    texts = {} if tokenizer is None else {one: piece(tokenizer, one) for one in set(ids) if one != NO_TOKEN}
    return [texts.get(one, "") for one in ids]


def token_texts(cache: ActivationCache, tokenizer: PreTrainedTokenizerBase | None) -> list[list[str]]:
    """Return the texts of the tokens of each prompt, [B][T]; their ids in brackets without a tokenizer."""
    if tokenizer is None:
        return [[f"[{token}]" for token in ids] for ids in cache.token_ids]
    return [pieces(tokenizer, ids) for ids in cache.token_ids]
