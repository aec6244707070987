"""Settings of fact pages, with their defaults. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from interpret.errors import InputError, unknown
from interpret.prompts.prompts import check_template
from interpret.prompts.selectors import check_selector
from interpret.records import SCREENED, TRACE_METHODS, TraceMethod

CELLS = ("subject_last,::4", "last,::4")
"""The cells that are interpreted by default, besides the peaks: the subject's last token and the prompt's last token,
at every fourth layer."""

TOKEN_NAMES = ("content", "last", "subject", "subject_last")
"""The names of tokens in a cell, see ``interpret.prompts.tokens.select_tokens``."""


@dataclass(frozen=True)
class FactSettings:
    """How the pages of facts are computed."""

    method: TraceMethod = SCREENED
    """How effects are traced: ``screened``, ``exact`` or ``approximate``, see ``interpret.tracing.trace_mediators``."""
    noise: str | float = "s3"
    """Noise on the embeddings of the subject, see ``interpret.tracing.TraceSettings``."""
    samples: int = 10
    """Number of noise samples."""
    seed: int = 0
    """Random seed of the noise, and of the wrong states of interpretations."""
    cells: tuple[str, ...] = CELLS
    """Cells to interpret besides the peaks, each ``TOKEN,LAYER``: two selectors, such as ``3,12``, ``-1,20`` or
    ``subject_last,::4``. The state is the output of the layer."""
    chat_template: str | None = None
    """Template that makes each prompt the user's message of a chat: ``model`` for the model's own, or a text that
    contains ``{prompt}``; None to read the prompts as they are."""

    def __post_init__(self) -> None:
        """Check the settings that need neither a model nor a fact.

        Raises:
            InputError: if a setting is invalid; the message names it.
        """
        if self.method not in TRACE_METHODS:
            raise InputError(unknown("method", self.method, TRACE_METHODS))
        for cell in self.cells:
            token, layer = split_cell(cell)
            check_selector("token", token, TOKEN_NAMES)
            check_selector("layer", layer)
        if self.chat_template is not None:
            check_template(self.chat_template)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What a run records of the settings, as JSON values."""
        return {
            "method": self.method,
            "noise": str(self.noise),
            "samples": self.samples,
            "seed": self.seed,
            "cells": list(self.cells),
            **({} if self.chat_template is None else {"chat_template": self.chat_template}),
        }


def split_cell(cell: str) -> tuple[str, str]:
    """Return the two selectors of a cell.

    Raises:
        InputError: if there are not two.

    >>> split_cell("subject_last,::4")
    ('subject_last', '::4')
    """
    token, comma, layer = cell.partition(",")
    if not comma or "," in layer:
        raise InputError(f"cell {cell!r} is not understood; give TOKEN,LAYER, such as 3,12 or subject_last,::4")
    return token.strip(), layer.strip()
