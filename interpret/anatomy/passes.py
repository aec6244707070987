"""Passes through a model: in which mode and thread, by which code, and what they keep for backward.

What is changed here is changed for the passes of one thread, or put back when the ``with`` block ends.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

Forward = Callable[..., Any]


@contextmanager
def replaced_forwards(modules: Sequence[nn.Module], change: Callable[[nn.Module, Forward], Forward]) -> Iterator[None]:
    """Let modules run another code, made from their own, inside a ``with`` block.

    Args:
        modules: one that comes several times is changed once.
        change: makes the new ``forward`` from a module and its own, which may be one that accelerate put there.
    """
    with ExitStack() as stack:
        for module in {id(module): module for module in modules}.values():
            stack.callback(_put_back, module, vars(module).get("forward"))
            module.forward = change(module, module.forward)
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    """Give a module the forward of its class again, or one that accelerate had put on it."""
    if own is None:
        del layer.forward
    else:
        layer.forward = own


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers keep nothing for backward but their input, in passes this thread makes inside the ``with`` block.

    Backward, also after the block, runs a layer again: in the mode its modules had, with the random numbers they drew,
    and with the hooks of this thread that are there then. Stock checkpointing asks for a model in training mode.
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
    """Put modules into training or evaluation mode for the time of a ``with`` block."""
    before = [(module, module.training) for module, _ in modes]
    try:
        for module, training in modes:
            module.training = training
        yield
    finally:
        for module, training in before:
            module.training = training


_for_thread = threading.local()


@contextmanager
def _standing_in(thread: int) -> Iterator[None]:
    """Compute a pass of another thread: autograd has threads of its own."""
    before = getattr(_for_thread, "ident", None)
    _for_thread.ident = thread
    try:
        yield
    finally:
        _for_thread.ident = before


def passing_thread() -> int:
    """Return the thread whose pass this one computes."""
    return getattr(_for_thread, "ident", None) or get_ident()


def only_in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a hook from the passes other threads make through the same model."""
    thread = passing_thread()
    return lambda *event: hook(*event) if passing_thread() == thread else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a model in evaluation mode for the time of a ``with`` block, then each module in the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
