"""Edit attention heads and neurons inside layers, in a ``with`` block.

``interpret.surgery`` edits the residual stream between layers. This module edits inside a layer: the values of the
MLP's neurons, and the input of the attention's output projection (its heads).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import Signature, signature
from typing import Any, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import (
    anatomy_of,
    cache_of,
    check_insides,
    first_column,
    keeping_activations,
    layer_input,
    past_length,
    tokens_of,
    with_layer_input,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.neurons import hook_neurons
from interpret.errors import InputError

UnitSite = Literal["heads", "neurons"]
"""The sites that are edited here."""
Edit = Callable[[Tensor, int], Tensor]
"""``edit(value, start)`` gets the values of a site, [B, T, width], and the column of its first token in the padded
batch; it returns the edited values, a new tensor of the same shape."""


@dataclass
class _Pass:
    """Columns and batch rows of the current forward pass."""

    trunk_signature: Signature
    start: int = 0
    """Column of its first token in the padded batch."""
    end: int = 0
    """One past the column of its last token."""
    n_rows: int = 0
    """B; needed because OPT's MLP gets [B * T, width]."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self.trunk_signature.bind(*args, **kwargs).arguments
        tokens = tokens_of(arguments)
        past = past_length(cache_of(arguments))
        # A cache without keys and values does not count its columns; it is that of the pass before this one.
        past = self.end if past is None else past
        self.n_rows, self.start = len(tokens), first_column(arguments, tokens.shape[1], past)
        self.end = self.start + tokens.shape[1]

    def edited(self, edit: Edit, value: Tensor) -> Tensor:
        """Return the edited values of a site, in the shape in which the model has them."""
        rows = value.view(self.n_rows, -1, value.shape[-1])  # [B, T, width]
        return edit(rows, self.start).view_as(value)

    def rewrite(self, edit: Edit) -> Callable[..., Any]:
        """Return a hook that edits the input of a module."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_layer_input(args, kwargs, self.edited(edit, layer_input(args, kwargs)))

        return hook


@contextmanager
def editing(model: PreTrainedModel, edits: Mapping[tuple[int, UnitSite], Edit]) -> Iterator[None]:
    """Apply edits to every forward pass of the calling thread inside the ``with`` block; then remove them.

    Args:
        model: a causal LM of a supported family, or its base model.
        edits: (layer, site) -> the edit of the site's values.

    Raises:
        UnsupportedModelError: if the family is unknown, or the modules of its row are not what the row says.
    """
    anatomy = anatomy_of(model)
    check_insides(model)
    under_way = _Pass(signature(anatomy.trunk.forward))
    with keeping_activations(anatomy.trunk), Changes() as change, change:
        change.before(anatomy.trunk, under_way.enter)
        for (layer, site), edit in edits.items():
            # First, so that other hooks at this site read the edited values.
            if site == "neurons":
                hook_neurons(change, anatomy, layer, partial(under_way.edited, edit), first=True)
            else:
                projection = anatomy.layers[layer].get_submodule(anatomy.parts.attention_out)
                change.before(projection, under_way.rewrite(edit), first=True)
        yield


def check_index(kind: str, index: int, count: int, of: str = "this model") -> None:
    """Check that a layer, head or neuron exists.

    Raises:
        InputError: if ``index`` is not from 0 to ``count - 1``.
    """
    if not 0 <= index < count:
        raise InputError(f"{kind} {index} does not exist; {of} has {kind}s 0 to {count - 1}")
