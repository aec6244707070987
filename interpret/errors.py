"""The errors of this package, and the words they use for a name that does not exist.

::

    InterpretError                  everything a user can mend; the command line prints it without a traceback
    +-- SpecError (ValueError)      insert_info does not fit the model or the batch
    +-- InputError (ValueError)     a prompt file, selector or argument is wrong
    +-- UnsupportedModelError       a model family nobody described, or a feature it cannot carry
    +-- ModelError                  a model or tokenizer cannot be opened
    +-- RunError                    a run directory cannot be started, continued or written
"""

from collections.abc import Iterable
from difflib import get_close_matches


class InterpretError(Exception):
    """Base of every error a user can cause and mend."""


class SpecError(InterpretError, ValueError):
    """``insert_info`` does not fit the model or the batch; the message names sample and key."""


class InputError(InterpretError, ValueError):
    """A prompt file, a selector or an argument is wrong."""


class UnsupportedModelError(InterpretError):
    """The model's family is not described in ``anatomy``, or cannot do what was asked."""


class ModelError(InterpretError):
    """A model or its tokenizer cannot be opened."""


class RunError(InterpretError):
    """A run directory cannot be started, continued or written."""


_MOST = 40
"""Names a message lists; of more it tells the first half of that."""


def unknown(kind: str, got: object, allowed: Iterable[str]) -> str:
    """Word the complaint about a name that is not one of ``allowed``, with the nearest one.

    >>> unknown("replacing_mode", "nomralized", ["normalized", "addition"])
    "unknown replacing_mode 'nomralized'; did you mean 'normalized'? Allowed: normalized, addition"
    """
    names = list(allowed)
    near = get_close_matches(str(got), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listed = names if len(names) <= _MOST else [*names[: _MOST // 2], f"... ({len(names)} in all)"]
    return f"unknown {kind} {got!r}; {hint}Allowed: {', '.join(listed)}"
