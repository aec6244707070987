"""The exceptions of this package, and the error message for an unknown name.

::

    InterpretError                  base class: errors a user can fix; commands print them without a traceback
    +-- SpecError (ValueError)      insert_info does not fit the model or the batch
    +-- InputError (ValueError)     a prompt file, a selector or an argument is invalid
    +-- UnsupportedModelError       the model's family is not supported, or not for this feature
    +-- ModelError                  a model or tokenizer cannot be opened, or a text does not fit in memory
    +-- RunError                    a run directory cannot be created, resumed or written
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InterpretError(Exception):
    """Base class of all errors that a user can cause and fix."""


class SpecError(InterpretError, ValueError):
    """``insert_info`` does not fit the model or the batch; the message names sample and key."""


class InputError(InterpretError, ValueError):
    """A prompt file, a selector or an argument is invalid."""


class UnsupportedModelError(InterpretError):
    """The model's family is not described in ``anatomy``, or does not support the requested feature."""


class ModelError(InterpretError):
    """A model or its tokenizer cannot be opened, or not even a single text fits in memory."""


class RunError(InterpretError):
    """A run directory cannot be created, resumed or written."""


_MOST = 40
"""Maximum number of names in a message; of a longer list, only the first ``_MOST // 2`` are shown."""


def unknown(kind: str, got: object, allowed: Iterable[str]) -> str:
    """Return the error message for a name that is not in ``allowed``; it suggests the closest allowed name.

    >>> unknown("replacing_mode", "nomralized", ["normalized", "addition"])
    "unknown replacing_mode 'nomralized'; did you mean 'normalized'? Allowed: normalized, addition"
    """
    names = list(allowed)
    near = get_close_matches(str(got), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = names if len(names) <= _MOST else [*names[: _MOST // 2], f"... ({len(names)} in all)"]
    return f"unknown {kind} {got!r}; {hint}Allowed: {', '.join(listed)}"
