"""The table of probes of prompts, used by functions, commands and help texts. ``register_probe`` adds a probe.

This module does not import torch, so that the probes can be listed quickly.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

from interpret.errors import InputError, unknown
from interpret.records import HeadView, LensReading, LogitShare, columns

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from interpret.prompts.tokens import TokenisedPrompt

TOP = 5
"""Default number of tokens that a probe lists."""
LOGIT, TUNED, IDENTITY = LENSES = ("logit", "tuned", "identity")
"""The lenses of the probe ``lens``; ``lenses`` describes them."""
RESERVED = ("neurons", "command", "tokens", "raw", "chat_template", "examples_sha256", "imports")
"""Names that neither a probe nor an option of a probe may have."""


@dataclass(frozen=True)
class Probed:
    """A tokenised prompt, the positions at which it is probed, and the tokens to follow."""

    name: str
    tokens: "TokenisedPrompt"
    positions: Sequence[int]
    """Positions of the tokens at which it is probed."""
    followed: Mapping[str, int]
    """Ids of the first tokens of ``target`` and ``foil``, by these keys, if the prompt has them."""


Reader = Callable[[Probed], Sequence[object]]
"""A function from a prompt to its rows."""


@dataclass(frozen=True)
class Probe:
    """A probe: it reads something from a prompt and returns it as rows of a table."""

    name: str
    """Name in ``interpret probe NAME``; one word of letters, digits and underscores."""
    description: str
    """What it reads, in one phrase, for ``--help``."""
    record: type
    """The frozen dataclass whose instances are its rows; ``interpret.records.table`` lists the types of fields."""
    reader: Callable[..., Reader] | str
    """``reader(model, tokenizer, **options)`` returns a function from a prompt (``Probed``) to its rows; options are
    keyword-only arguments with defaults. A string names a function of this package: ``prompt_probes.lens_probe``."""
    figure: "Callable[[pandas.DataFrame], Figure] | None" = None
    """Draws its table as a figure of matplotlib, for ``interpret figures``; None if there is none."""
    at_tokens: bool = True
    """Whether it reads at selected tokens of a prompt."""

    def read(self, model: Any, tokenizer: Any, **options: Any) -> Reader:
        """Return a function from a prompt to its rows.

        Raises:
            InputError: for an option that the probe does not have.
        """
        self.check_options(options)
        return self._reader(model, tokenizer, **options)

    def check_options(self, options: Iterable[str]) -> None:
        """Check the names of options.

        Raises:
            InputError: for an option that the probe does not have.
        """
        known = self.options()
        for option in options:
            if option not in known:
                has = unknown("option", option, known) if known else f"unknown option {option!r}; it has none"
                raise InputError(f"probe {self.name!r}: {has}")

    def options(self) -> dict[str, Any]:
        """Return the options with their defaults."""
        parameters = signature(self._reader).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    @property
    def _reader(self) -> Callable[..., Reader]:
        if not isinstance(self.reader, str):
            return self.reader
        module, _, name = self.reader.partition(".")
        found: Callable[..., Any] = getattr(import_module(f"{__package__}.{module}"), name)
        return found


PROBES: dict[str, Probe] = {}
"""The probes by name, in the order in which they were registered."""


def register_probe(probe: Probe) -> None:
    """Add a probe, so that ``interpret probe`` and ``run_probe`` accept its name.

    Args:
        probe: the probe.

    Raises:
        InputError: if the name is taken or is not a single word, an option has no default or a reserved name, or the
            record cannot be a row of a table.
    """
    what = f"probe {probe.name!r}"
    if not re.fullmatch(r"[A-Za-z]\w*", probe.name):
        raise InputError(f"{what}: a name is one word of letters, digits and underscores")
    if probe.name in (*PROBES, *RESERVED):
        raise InputError(f"{what} already exists; give another name")
    try:
        columns(probe.record)
    except TypeError as error:
        raise InputError(f"{what}: its record cannot be a row: {error}") from None
    if not isinstance(probe.reader, str):
        for option, default in probe.options().items():
            if option in RESERVED or default is signature(probe.reader).empty:
                raise InputError(f"{what}: option {option!r} needs a default, and another name than {RESERVED}")
    PROBES[probe.name] = probe


LENS = Probe(
    "lens",
    "the most likely next tokens, read from the state after every layer by a lens",
    LensReading,
    "prompt_probes.lens_probe",
)
LOGITS = Probe(
    "logits",
    "what every head and MLP adds to the logit of the answer (direct logit attribution)",
    LogitShare,
    "prompt_probes.logits_probe",
    at_tokens=False,
)
HEADS = Probe(
    "heads",
    "the tokens that every head attends to, and how much it is an induction head",
    HeadView,
    "prompt_probes.heads_probe",
)
for _own in (LENS, LOGITS, HEADS):
    register_probe(_own)
