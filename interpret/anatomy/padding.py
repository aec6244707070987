"""Whether padding on the left changes what a model computes for the tokens after it, measured on the model itself.

Attention ignores masked columns. A recurrent layer has to skip them by itself, and some do not: the states of
RecurrentGemma begin with those of the padding. A padded row is then not what it is alone. Padding on the right is read
after all tokens of a row, so it changes nothing.
Shapes: B rows, T columns.
"""

from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.agreement import composition
from interpret.anatomy.agreement_pass import own_result, two_texts
from interpret.anatomy.anatomy import anatomy_of
from interpret.anatomy.calls import longest_text
from interpret.anatomy.difference import apart
from interpret.anatomy.passes import evaluating, without_own_hooks
from interpret.errors import InputError, UnsupportedModelError

_PADDING = 3
"""Columns of padding in the pass that is compared."""
_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], tuple[float, float] | None]] = WeakKeyDictionary()


def reads_padding(model: PreTrainedModel) -> tuple[float, float] | None:
    """Return what ``padding_difference`` returns; None without a measurement if all layers have attention."""
    return None if model.config.is_encoder_decoder or _has_parts(model) else padding_difference(model)


def padding_difference(model: PreTrainedModel) -> tuple[float, float] | None:
    """Return a logit of a text that is padded on the left and the same logit without padding; None if all are equal."""
    made_of = composition(model)
    if model not in _KNOWN or _KNOWN[model][0] != made_of:
        _KNOWN[model] = made_of, _measured(model)
    return _KNOWN[model][1]


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
    figures = reads_padding(model)
    if figures is not None:
        raise InputError(
            f"sample {int(padded.nonzero()[0])} is padded on the left, and the recurrent layers of "
            f"{type(model).__name__} read the padding: a logit of {figures[1]:.4g} becomes {figures[0]:.4g}. Pass "
            "samples with equal numbers of tokens, or one sample at a time"
        )


def _has_parts(model: PreTrainedModel) -> bool:
    try:
        return anatomy_of(model).family.parts is not None
    except UnsupportedModelError:
        return False


@torch.no_grad()
def _measured(model: PreTrainedModel) -> tuple[float, float] | None:
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
    with without_own_hooks(), evaluating(model):
        found = model(input_ids=ids, **more)
        expected = own_result(model, alone)
    exact = all(parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters())
    return apart(exact, found[0][:1, n_padding:], expected)
