"""Forward passes through a model: their mode and thread, replaced forward methods, and gradient checkpointing.

Changes apply to the passes of one thread only, or are undone when the ``with`` block ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from interpret.anatomy.changes import Changes, for_thread, passing_thread

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], change: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Replace the ``forward`` of modules inside the ``with`` block.

    Args:
        modules: the modules; a repeated module is changed once.
        change: returns the new ``forward`` for a module and its current one, which accelerate may have set.
    """
    with Changes() as changes, changes:
        for module in {id(module): module for module in modules}.values():
            changes.undo(partial(_put_back, module, vars(module).get("forward")))
            module.forward = change(module, module.forward)
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    """Restore a module's ``forward``: that of its class, or the one that accelerate had set on the module."""
    if own is None:
        vars(layer).pop("forward", None)
    else:
        layer.forward = own


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Apply gradient checkpointing to layers in passes that this thread makes inside the ``with`` block.

    Layers keep only their input. The backward pass, also after the block, runs each layer again: in the mode its
    modules had, with the same random numbers, and with the hooks of this thread that exist at that time. Unlike the
    checkpointing of transformers, this does not require training mode.
    """
    thread = passing_thread()

    def again(layer: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            if passing_thread() != thread or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            modes = [(module, module.training) for module in layer.modules()]

            def forward_as_now(*args: Any, **kwargs: Any) -> Any:
                with _standing_in(thread), in_modes(modes):
                    return forward(*args, **kwargs)

            return checkpoint(forward_as_now, *args, use_reentrant=False, **kwargs)

        return run

    with replaced_forwards(layers, again):
        yield


@contextmanager
def in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Set modules to training or evaluation mode inside the ``with`` block."""
    with Changes() as change, change:
        change.undo(partial(_set_modes, [(module, module.training) for module, _ in modes]))
        _set_modes(modes)
        yield


_NO_THREAD = -1
"""Is the number of no thread."""
_OWN = ("interpret.", "transformers.")


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def _standing_in(thread: int) -> Iterator[None]:
    """Compute on behalf of another thread inside the ``with`` block: autograd runs backward in its own threads."""
    with Changes() as change, change:
        change.undo(partial(setattr, for_thread, "ident", getattr(for_thread, "ident", None)))
        for_thread.ident = thread
        yield


def without_own_hooks() -> AbstractContextManager[None]:
    """Make passes inside the ``with`` block that hooks of this package ignore, if they exist when the block begins."""
    return _standing_in(_NO_THREAD)


def foreign_changes(module: nn.Module) -> tuple[int, ...]:
    """Return the ids of a module's hooks and replaced ``forward`` that come from neither this package nor transformers.

    They may change what the module computes; hooks of this package and of transformers only do so for a while, or
    not at all.
    """
    found = {**module._forward_hooks, **module._forward_pre_hooks}
    if "forward" in vars(module):
        found[id(module.forward)] = module.forward
    return tuple(number for number, one in found.items() if not getattr(one, "__module__", "").startswith(_OWN))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode inside the ``with`` block, then restore the mode of each module."""
    with in_modes([(module, False) for module in model.modules() if module.training]):
        yield


@contextmanager
def grad_mode(enabled: bool) -> Iterator[None]:
    """Turn gradients on or off inside the ``with`` block; unlike after ``torch.no_grad``, also if it is interrupted."""
    with Changes() as change, change:
        change.undo(partial(torch.set_grad_enabled, torch.is_grad_enabled()))
        torch.set_grad_enabled(enabled)
        yield
