"""What a message of the project is, whatever the user's file contains; and a count of the work that led to it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from interpret.errors import InputError, InterpretError, ModelError, RunError

LONGEST = 1000
EXPECTED = (InputError, ModelError, RunError)


def check_message(error: InterpretError, *, lines: int = 1) -> None:
    """Check that a message is short, printable, and on one line."""
    text = str(error)
    assert len(text) <= LONGEST, len(text)
    assert text.count("\n") < lines, text
    assert text.replace("\n", "").isprintable(), text
    text.encode()


@contextmanager
def one_message_at_most(*, lines: int = 1) -> Iterator[None]:
    """Allow the ``with`` block to fail with one message of the project, and with nothing else."""
    try:
        yield
    except EXPECTED as error:
        check_message(error, lines=lines)


class TooMuchWorkError(AssertionError):
    """More calls than allowed."""


@contextmanager
def at_most_calls(limit: int) -> Iterator[None]:
    """Count the calls of functions, of Python and of C, inside the ``with`` block, and end it when there are too many.

    A count is the same on every machine, busy or not.
    """
    calls = 0

    def count(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")
        if calls > limit:
            raise TooMuchWorkError(f"more than {limit} calls")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
