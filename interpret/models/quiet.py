"""Opening files with other libraries: their output suppressed, and their errors as one message."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from huggingface_hub import utils as hub  # type: ignore[import-untyped]
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from interpret.anatomy.changes import Changes
from interpret.errors import ModelError, one_line
from interpret.models.safety import refusal_of_pickle

_HARMLESS_WARNINGS = (".*TypedStorage is deprecated.*", ".*_register_pytree_node.*", "Detected pickle protocol")
"""transformers 4.34.0 uses names that torch has since renamed, and weights of an unusual pickle protocol are refused
with an error of their own."""


@contextmanager
def explained(problem: str, advice: str) -> Iterator[None]:
    """Convert errors of the libraries to a ModelError with their first sentence, and with their type if it is unusual.

    Files of a model may contain anything, so the libraries may raise anything (a configuration without heads gives a
    ``ZeroDivisionError``). The original error stays the cause.
    """
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        if refusal := refusal_of_pickle(error):
            raise ModelError(f"{problem}: {refusal}") from error
        # tokenizers raises a plain Exception for a damaged tokenizer.json
        usual = type(error) is Exception or isinstance(error, _OPENING_ERRORS)
        text = _first_sentence(error) if usual else f"{type(error).__name__}: {_first_sentence(error)}"
        raise ModelError(f"{problem}: {text}. {advice}") from error


def _first_sentence(error: Exception) -> str:
    """Return the first sentence of an error, without advice, which is about the hub even if a folder was given."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    sentence = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return one_line(sentence.split(". ")[0].rstrip("."))


_OPENING_ERRORS = (OSError, ValueError, LookupError, ImportError, RuntimeError, SafetensorError)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the output of transformers and accelerate while opening a model; download progress bars stay."""
    with Changes() as change, change:
        change.set(warnings, "filters", [*warnings.filters])
        for message in _HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message)
        change.undo(partial(transformers_logging.set_verbosity, transformers_logging.get_verbosity()))
        transformers_logging.set_verbosity_error()
        hub_bars = not hub.are_progress_bars_disabled()
        change.undo(partial(_show_bars, transformers_logging.is_progress_bar_enabled(), hub_bars))
        _show_bars(False, hub_bars)
        # accelerate logs offloading to the root logger; without a handler, that would configure logging for the
        # process.
        silent = logging.NullHandler()
        change.undo(partial(logging.root.removeHandler, silent))
        logging.root.addHandler(silent)
        yield


def _show_bars(loading: bool, downloads: bool) -> None:
    """Turn the progress bars of transformers and of the hub on or off; the former also set the latter."""
    transformers_logging.enable_progress_bar() if loading else transformers_logging.disable_progress_bar()
    hub.enable_progress_bars() if downloads else hub.disable_progress_bars()
