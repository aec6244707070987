"""Errors of a model's own code when it is run in a way for which it may not have been made."""

from interpret.device import is_out_of_memory
from interpret.errors import one_line

FAILURES = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What such code may raise. None of them is an error of this package, which are ``InterpretError``."""


def failure(error: Exception) -> str:
    """Return one of the ``FAILURES`` as a line for a message; a lack of memory is no failure, and is raised again."""
    if is_out_of_memory(error):
        raise error
    return one_line(f"{type(error).__name__}: {error}", 200)
