"""Apply a plan to a model with hooks, for one call.

Edits are made to the input of a layer, never in place, and in one vectorised step per layer. They are bound to
absolute columns of the padded batch, so a cache, chunks, beams or candidates do not change the result: a pass
edits the columns that it computes, and the keys and values of edited tokens stay in the cache.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from interpret.anatomy import (
    Anatomy,
    cache_of,
    first_column,
    keeping_activations,
    layer_input,
    past_length,
    with_layer_input,
)
from interpret.anatomy.changes import Changes
from interpret.device import sent
from interpret.errors import SpecError
from interpret.surgery.plan import LayerEdit, SurgeryPlan


@dataclass(frozen=True)
class BoundEdit:
    """A layer's edit with the column of every token."""

    edit: LayerEdit
    columns: Tensor
    """[N] int64, CPU: absolute columns of the padded batch."""
    first: int
    """The smallest of ``columns``."""
    last: int
    """The largest of ``columns``. Most passes of a decoding call lie outside this range and are not edited."""


@contextmanager
def applied(anatomy: Anatomy, plan: SurgeryPlan, columns: Tensor, model: nn.Module | None = None) -> Iterator[None]:
    """Apply ``plan`` to every pass the calling thread makes through the model, inside the ``with`` block.

    Args:
        anatomy: the model's parts.
        plan: what to write where.
        columns: [B, T] int64, the column of each token of each sample (``batches.token_columns``). A pass may
            have any multiple of B rows, with the rows of a sample next to each other, as in beam search.
        model: the model that is called, if its output is to show the edited states: Qwen3-VL of transformers 4.57
            collects ``hidden_states`` again outside the trunk.
    """
    operation = _Operation(len(columns), {k: bind(edit, columns) for k, edit in plan.edits.items()}, anatomy)
    if not plan.edits:
        yield
        return
    with keeping_activations(anatomy.trunk), Changes() as change, change:
        operation.hook_up(anatomy, change, model)
        yield


def bind(edit: LayerEdit, columns: Tensor) -> BoundEdit:
    """Return a layer's edit with the columns of its tokens; ``columns``, [B, T], are those of all tokens."""
    bound = columns[edit.samples, edit.positions]
    return BoundEdit(edit, bound, int(bound.min()), int(bound.max()))


class _Operation:
    """State shared by the hooks of one call: where the current pass starts, and what it has edited."""

    def __init__(self, n_samples: int, edits: Mapping[int, BoundEdit], anatomy: Anatomy) -> None:
        self.n_samples = n_samples
        self.edits = edits
        self.trunk_signature: Signature = signature(anatomy.trunk.forward)
        self.past = 0  # columns in the cache before the current pass
        self.end = 0  # one past the last column of the current pass
        self.arguments: Mapping[str, Any] = {}  # of the trunk's call
        self.edited: dict[int, tuple[Tensor, Tensor]] = {}  # id of a layer's input -> (it, its edited copy)

    def hook_up(self, anatomy: Anatomy, change: Changes, model: nn.Module | None) -> None:
        """Register all hooks."""
        outermost = anatomy.trunk if model is None else model
        change.before(anatomy.trunk, self._enter_pass)
        change.after(anatomy.trunk, self._show_edits)
        if outermost is not anatomy.trunk:
            change.after(outermost, self._show_edits)
        change.after(outermost, self._leave_pass)
        for layer, bound in self.edits.items():
            # Before other hooks, so that hooks that read the layer's input read the edited one.
            change.before(anatomy.layers[layer], self._edit_input(bound), first=True)

    def _enter_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments = self.trunk_signature.bind(*args, **kwargs).arguments
        past = past_length(cache_of(self.arguments))
        # A cache without keys and values does not count its columns; it is that of the pass before this one.
        self.past = self.end if past is None else past
        self.edited.clear()

    def _edit_input(self, bound: BoundEdit) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = layer_input(args, kwargs)  # [R, T, D], R a multiple of B
            start = first_column(self.arguments, hidden.shape[1], self.past)
            self.end = start + hidden.shape[1]
            if bound.last < start or start + hidden.shape[1] <= bound.first:
                return None
            after = overlay(hidden, bound, start, self._copies(hidden))
            self.edited[id(hidden)] = (hidden, after)
            return with_layer_input(args, kwargs, after)

        return hook

    def _copies(self, hidden: Tensor) -> int:
        """Return how many rows of a pass belong to each sample."""
        copies, rest = divmod(hidden.shape[0], self.n_samples)
        if rest:
            raise SpecError(
                f"insert_info has {self.n_samples} samples, but the model is run on {hidden.shape[0]} rows; "
                "the number of rows must be a multiple of the number of samples"
            )
        return copies

    def _show_edits(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Put the edited values into ``hidden_states``, which the model collects before our hooks run."""
        return _swap(output, self.edited) if self.edited else None

    def _leave_pass(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Free what the pass has edited: these are whole hidden states."""
        self.edited = {}


def overlay(hidden: Tensor, bound: BoundEdit, start: int, copies: int = 1) -> Tensor:
    """Return ``hidden`` with ``keep * state + add * vector`` at the bound columns.

    Args:
        hidden: [B * copies, T, D], not modified.
        bound: what to write where.
        start: absolute column of ``hidden[:, 0]``.
        copies: number of rows per sample; they are next to each other.
    """
    edit = bound.edit
    inside = ((bound.columns >= start) & (bound.columns < start + hidden.shape[1])).nonzero().squeeze(1)
    rows = (edit.samples[inside, None] * copies + torch.arange(copies)).flatten()  # [N * copies]
    columns = (bound.columns[inside] - start).repeat_interleave(copies)
    # Half-precision states are mixed in float32 and rounded once.
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    def each_copy(values: Tensor) -> Tensor:
        chosen = values[sent(inside, values.device)]
        return sent(chosen.to(dtype), hidden.device).repeat_interleave(copies, dim=0)

    index = (sent(rows, hidden.device), sent(columns, hidden.device))
    mixed = each_copy(edit.keep) * hidden[index].to(dtype) + each_copy(edit.add) * each_copy(edit.vectors)
    return hidden.index_put(index, mixed.to(hidden.dtype))


def _swap(value: Any, edited: Mapping[int, tuple[Tensor, Tensor]]) -> Any:
    """Return ``value`` with every tensor that has an edited copy replaced by that copy."""
    if isinstance(value, Tensor):
        return edited[id(value)][1] if id(value) in edited else value
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _swap(part, edited) for name, part in value.items()})
    if type(value) is tuple:
        return tuple(_swap(part, edited) for part in value)
    return value
