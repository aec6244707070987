"""What recurrent layers do with padding and with their cache, measured on the model itself.

Attention ignores masked columns. A recurrent layer has to skip them by itself, and some do not: the states of
RecurrentGemma begin with those of the padding. A row that is padded on the left is then not what it is alone. Padding
on the right is read after all tokens of a row, so it changes nothing. A cache holds keys and values, or the states of
recurrent layers; ``generate`` of transformers 5 drops those of RWKV, and continues another text. Models whose layers
are run part by part have attention only, and are not measured unless asked for.
Shapes: B rows, T columns, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from interpret.anatomy.agreement import composition
from interpret.anatomy.agreement_pass import own_result, two_texts
from interpret.anatomy.anatomy import anatomy_of
from interpret.anatomy.calls import longest_text
from interpret.anatomy.difference import apart, in_full_precision
from interpret.anatomy.failures import FAILURES, failure
from interpret.anatomy.generate_settings import generating_by
from interpret.anatomy.passes import evaluating, without_own_hooks
from interpret.errors import InputError, UnsupportedModelError

_PADDING = 3
"""Columns of padding in the pass that is compared."""
_NEW_TOKENS = 3
"""How many tokens are written by the cache that is compared."""
_LONGEST = 4
"""Texts of so many tokens or more are continued alike: the convolutions of recurrent layers are not wider."""
_KNOWN: dict[str, WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], str | None]]] = {
    what: WeakKeyDictionary() for what in ("padding", *(f"cache of {n}" for n in range(1, _LONGEST + 1)))
}
"""What was measured of each model, and what the model was made of at that time."""


def reads_padding(model: PreTrainedModel) -> str | None:
    """Return what ``padding_difference`` returns; None without a measurement if all layers have attention."""
    return None if _only_attends(model) else padding_difference(model)


def padding_difference(model: PreTrainedModel) -> str | None:
    """Return how a logit of a text changes when the text is padded on the left; None if none does."""
    return _remembered("padding", model, _padded)


def loses_its_cache(model: PreTrainedModel, n_tokens: int) -> str | None:
    """Return what ``cache_difference`` returns; None without a measurement if all layers have attention."""
    return None if _only_attends(model) else cache_difference(model, n_tokens)


def cache_difference(model: PreTrainedModel, n_tokens: int) -> str | None:
    """Return how logits of ``generate`` with a cache differ from those of passes over the whole text; None if equal.

    The shortest texts are measured by themselves: RecurrentGemma takes one token for the continuation of the text
    before it, and Mamba in transformers 4.57 loses the state of its convolutions after one or two.

    Args:
        model: the model.
        n_tokens: number of tokens of the text that is continued.
    """
    if not model.can_generate():
        return None
    n_tokens = min(n_tokens, _LONGEST)
    return _remembered(f"cache of {n_tokens}", model, partial(_continued, n_tokens))


def check_padding(model: PreTrainedModel, attention_mask: Tensor) -> None:
    """Check that no row of a batch has padding before a token, unless the model ignores it.

    Args:
        model: the model that reads the batch.
        attention_mask: [B, T], 0 at padding.

    Raises:
        InputError: if a row would get other numbers than alone; the message gives both figures of one logit.
    """
    tokens = attention_mask.ne(0)
    before_a_token = tokens.flip(1).cumsum(1).flip(1) > 0
    padded = (before_a_token & ~tokens).any(dim=1)
    if not padded.any():
        return
    problem = reads_padding(model)
    if problem is not None:
        raise InputError(
            f"sample {int(padded.nonzero()[0])} is padded on the left, which changes what {type(model).__name__} "
            f"computes for it: {problem}. Pass samples with equal numbers of tokens, or one sample at a time"
        )


def check_cache(model: PreTrainedModel, n_tokens: int) -> None:
    """Check that ``generate`` with a cache continues a text of some length as passes over the whole text do.

    Raises:
        UnsupportedModelError: if it does not; the message gives both figures of one logit.
    """
    problem = loses_its_cache(model, n_tokens)
    if problem is not None:
        raise UnsupportedModelError(
            f"{type(model).__name__}: generate with a cache does not continue texts of {n_tokens} tokens as passes "
            f"over the whole texts: {problem}. Pass use_cache=False"
        )


def _only_attends(model: PreTrainedModel) -> bool:
    """Return whether all layers of a model are known to have attention."""
    if model.config.is_encoder_decoder:
        return True
    try:
        return anatomy_of(model).family.parts is not None
    except UnsupportedModelError:
        return False


def _remembered(what: str, model: PreTrainedModel, measure: Callable[[PreTrainedModel], str | None]) -> str | None:
    known, made_of = _KNOWN[what], composition(model)
    if model not in known or known[model][0] != made_of:
        with torch.no_grad(), without_own_hooks(), evaluating(model):
            known[model] = made_of, measure(model)
    return known[model][1]


def _padded(model: PreTrainedModel) -> str | None:
    """Compare the logits of a text in a padded row with those of the text alone."""
    texts = two_texts(model)
    alone, other = texts[:1], texts[1:]
    n_padding = min(_PADDING, longest_text(model) - alone.shape[1])
    padding = other[:, -1:].expand(1, n_padding)  # any token: the mask tells that it is padding
    ids = torch.cat([torch.cat([padding, alone], dim=1), torch.cat([padding, other], dim=1)])
    mask = torch.ones_like(ids)
    mask[0, :n_padding] = 0
    more: dict[str, Any] = {"attention_mask": mask, "use_cache": False, "return_dict": True}
    if "position_ids" in signature(model.forward).parameters:
        more["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    return _change(model, model(input_ids=ids, **more)[0][:1, n_padding:], own_result(model, alone))


def _continued(n_tokens: int, model: PreTrainedModel) -> str | None:
    """Compare the logits of tokens that are written by the cache with those of passes over the whole texts."""
    texts = two_texts(model).repeat(1, 2)
    config = GenerationConfig(
        max_new_tokens=_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    try:
        with generating_by(model, config):
            model.generate(texts, attention_mask=torch.ones_like(texts), generation_config=config)
            ids = texts[:, -n_tokens:]
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    except FAILURES as error:
        return f"it fails with {failure(error)}"
    expected = own_result(model, output.sequences[:, :-1])[:, ids.shape[1] - 1 :]
    return _change(model, torch.stack(output.scores, dim=1), expected)


def _change(model: PreTrainedModel, found: Tensor, expected: Tensor) -> str | None:
    """Return which logit differs most between two computations of the same; None if they agree."""
    figures = apart(in_full_precision(model), found, expected)
    return None if figures is None else f"a logit of {figures[1]:.4g} becomes {figures[0]:.4g}"
