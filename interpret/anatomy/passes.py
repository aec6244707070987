"""Forward passes through a model: their mode and thread, replaced forward methods, and gradient checkpointing.

Changes apply to the passes of one thread only, or are undone when the ``with`` block ends.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], change: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Replace the ``forward`` of modules inside the ``with`` block.

    Args:
        modules: the modules; a repeated module is changed once.
        change: returns the new ``forward`` for a module and its current one, which accelerate may have set.
    """
    with ExitStack() as stack:
        for module in {id(module): module for module in modules}.values():
            stack.callback(_put_back, module, vars(module).get("forward"))
            module.forward = change(module, module.forward)
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    """Restore a module's ``forward``: that of its class, or the one that accelerate had set on the module."""
    if own is None:
        del layer.forward
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
                with _standing_in(thread), _in_modes(modes):
                    return forward(*args, **kwargs)

            return checkpoint(forward_as_now, *args, use_reentrant=False, **kwargs)

        return run

    with replaced_forwards(layers, again):
        yield


@contextmanager
def _in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Set modules to training or evaluation mode inside the ``with`` block."""
    before = [(module, module.training) for module, _ in modes]
    try:
        for module, training in modes:
            module.training = training
        yield
    finally:
        for module, training in before:
            module.training = training


_for_thread = threading.local()
_NO_THREAD = -1
"""Is the number of no thread."""
_OWN = ("interpret.", "transformers.")


@contextmanager
def _standing_in(thread: int) -> Iterator[None]:
    """Compute on behalf of another thread inside the ``with`` block: autograd runs backward in its own threads."""
    before = getattr(_for_thread, "ident", None)
    _for_thread.ident = thread
    try:
        yield
    finally:
        _for_thread.ident = before


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


def passing_thread() -> int:
    """Return the thread that made the current pass: the current thread, except in a backward pass of autograd."""
    return getattr(_for_thread, "ident", None) or get_ident()


def only_in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that ignores the passes that other threads make through the same model."""
    thread = passing_thread()
    return lambda *event: hook(*event) if passing_thread() == thread else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode inside the ``with`` block, then restore the mode of each module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
