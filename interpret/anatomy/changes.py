"""Changes to a model or to the process that end with their ``with`` block, at whatever line it is interrupted.

Ctrl-C can raise a ``KeyboardInterrupt`` at any line: between a change and the note of how to undo it, or while changes
are being undone. Therefore every step of undoing is noted before its change is made and may be repeated, hooks ignore
all passes once the block has ended, and blocks are written as ``with Changes() as change, change:``. This ends the
block twice: if the first ending is interrupted, the second completes it.
"""

import threading
from collections.abc import Callable
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any

from torch import nn

for_thread = threading.local()
"""Its ``ident`` is the thread on whose behalf this thread computes, if any: autograd runs backward in its threads."""


def passing_thread() -> int:
    """Return the thread that made the current pass: the current thread, except in a backward pass of autograd."""
    return getattr(for_thread, "ident", None) or get_ident()


def only_in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that ignores the passes that other threads make through the same model."""
    thread = passing_thread()
    return lambda *event: hook(*event) if passing_thread() == thread else None


class Changes:
    """The changes of one ``with`` block; when it ends, they are undone, the latest first.

    >>> module = nn.Linear(1, 1)
    >>> with Changes() as change, change:
    ...     change.set(module, "training", False)
    >>> module.training
    True
    """

    def __init__(self) -> None:
        """Begin without changes."""
        self._alive = True
        self._steps: list[Callable[[], object]] = []

    def __enter__(self) -> "Changes":
        """Return the changes themselves."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Undo what has not been undone yet."""
        self._alive = False
        while self._steps:
            # Removed afterwards, so that an interrupted step is done again.
            self._steps[-1]()
            self._steps.pop()

    def undo(self, step: Callable[[], object]) -> None:
        """Note how to undo a change; call this before making the change.

        Args:
            step: undoes the change. It has no effect if there was no change, and may be called again.
        """
        self._steps.append(step)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute that exists."""
        self.undo(partial(setattr, owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def before(self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False) -> None:
        """Add a hook before a module's forward, for passes of this thread: ``hook(module, args, kwargs)``.

        Args:
            module: the module.
            hook: as for ``register_forward_pre_hook`` with keyword arguments.
            first: run it before the other hooks, so that these read what it returns.
        """
        own = self._living(hook)
        self.undo(partial(_remove, module, own))
        module.register_forward_pre_hook(own, prepend=first, with_kwargs=True)

    def after(self, module: nn.Module, hook: Callable[..., Any], **options: bool) -> None:
        """Add a hook after a module's forward, for passes of this thread: ``hook(module, args, output)``.

        Args:
            module: the module.
            hook: as for ``register_forward_hook``.
            **options: ``with_kwargs`` or ``always_call``, as for ``register_forward_hook``.
        """
        own = self._living(hook)
        self.undo(partial(_remove, module, own))
        module.register_forward_hook(own, **options)

    def _living(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        """Return a hook that does nothing in other threads, or once the block has ended."""
        mine = only_in_this_thread(hook)
        return lambda *event: mine(*event) if self._alive else None


# Where modules keep their forward hooks, and the options of these. The options come first in the removal, because the
# number of a hook is found by the hook itself.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TABLES = (*(n for n in vars(nn.Module()) if n.startswith("_forward") and "_hooks_" in n), *_HOOKS)


def _remove(module: nn.Module, hook: Callable[..., Any]) -> None:
    """Remove a hook from a module; there may be no handle that could, if registering the hook was interrupted."""
    own = vars(module)
    numbers = {number for name in _HOOKS for number, one in own[name].items() if one is hook}
    for name in _TABLES:
        for number in numbers:
            own[name].pop(number, None)
