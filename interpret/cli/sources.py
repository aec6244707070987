"""Options that say what a command reads: one prompt, or a file. Every command has them from here.

A prompt that is given by options becomes a row with the same columns as a file, and is read as that row: both give the
same run. docs/guide/prompts.md shows which command has which option.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpret.cli.console import say
from interpret.errors import InputError
from interpret.prompts.prompts import MODEL_TEMPLATE, Prompt, check_template, load_examples, raw_unless_said
from interpret.reading import KINDS

if TYPE_CHECKING:
    from interpret.facts.files import FactFile

READ_AS = (
    "[default: facts, and prompts with a target or a foil, are texts to be continued and are read as they are; any "
    "other prompt is the user's message in the model's own chat template, if it has one]"
)
"""The default of all commands; for prompts, ``Prompt.raw`` decides."""
_IDS = ("target_ids", "foil_ids")
_KEYS = ("subject", "target", "foil", *_IDS)
"""The keys of a row besides the prompt that are options, too."""
_OPTIONS = {"attribute": "target", "target_ids": "target-ids", "foil_ids": "foil-ids"}
"""Key of a row -> its option, where the names differ."""
_QUOTED = re.compile(r'"(prompt|subject|attribute|target_ids|target|foil_ids|foil)"')
_PLACE = re.compile(r"^examples\[0\]: ")


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Whether prompts are put into a chat template."""

    raw: Annotated[bool, typer.Option("--raw", help="Read the prompts as they are, without a chat template.")] = False
    chat_template: Annotated[
        str | None,
        typer.Option(
            help="Make the prompts the user's message of a chat: 'model' for the model's own template, or a text such "
            f"as '[INST] {{prompt}} [/INST]'. {READ_AS}",
            show_default=False,
        ),
    ] = None

    def raw_unless_said(self) -> bool | None:
        """Check both options, and return what prompts are that do not say themselves whether they are raw.

        Raises:
            InputError: if they exclude each other, or the template has no place for the prompt.
        """
        if self.chat_template is not None:
            check_template(self.chat_template)
        return raw_unless_said(raw=self.raw, chat_template=self.chat_template)


@dataclass(frozen=True, kw_only=True)
class TextOption:
    """The text of a single prompt."""

    prompt: Annotated[
        str | None, typer.Option(help="A single prompt, such as 'The Eiffel Tower is in the city of'.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class SubjectOption:
    """What the prompt is about."""

    subject: Annotated[
        str | None, typer.Option(help="What --prompt is about, a part of it, such as 'The Eiffel Tower'.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class TargetOption:
    """What follows the prompt."""

    target: Annotated[
        str | None,
        typer.Option(
            help="What follows --prompt, such as Paris, read as it is given; a space is added only before a word, "
            "after another word or a comma."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FoilOption:
    """What the target is contrasted with."""

    foil: Annotated[
        str | None, typer.Option(help="A wrong continuation, to contrast the target with: why Paris rather than Rome?")
    ] = None


@dataclass(frozen=True, kw_only=True)
class IdsOptions:
    """Target and foil as token ids."""

    target_ids: Annotated[
        str | None, typer.Option(help="Instead of --target: ids of the tokens that follow --prompt, such as '3564,11'.")
    ] = None
    foil_ids: Annotated[str | None, typer.Option(help="Instead of --foil: the ids of its tokens.")] = None


@dataclass(frozen=True, kw_only=True)
class ExamplesOption:
    """A file of prompts."""

    examples: Annotated[
        Path | None,
        typer.Option(
            help=f"Instead of --prompt: file of prompts such as examples/examples.json: {KINDS}; or a data set of "
            "facts, as for --facts of 'interpret trace'."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FactsOption:
    """A file of facts."""

    facts: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --prompt: file of facts such as examples/facts.json, with the columns of known_1000, "
            "CounterFact, counterfact-tracing, zsRE or EasyEdit; JSON, JSON Lines (.jsonl), CSV (.csv) or TSV (.tsv)."
        ),
    ] = None


class _Reading:
    """What all of these options have in common: they are one prompt, or a file."""

    prompt: str | None

    def folder(self, of_file: str, given: Path | None, *options: object) -> Path:
        """Return the run folder.

        Args:
            of_file: the default for a file.
            given: the folder that was asked for.
            options: all other options; a single prompt with other options gets another folder.
        """
        if given is not None or self.prompt is None:
            return given or Path(of_file)
        words = re.sub(r"\W+", "-", self.prompt.casefold()).strip("-")[:40].strip("-")
        return Path(f"{of_file}-{words}-{sha256(repr((self, options)).encode()).hexdigest()[:6]}")

    def _one(self, file: Path | None, option: str, what: str) -> dict[str, Any] | None:
        """Return the row of a single prompt; None if a file is given instead.

        Raises:
            InputError: if neither or both are given.
        """
        own = [name for name in _KEYS if hasattr(self, name)]
        row = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        if (self.prompt is None) == (file is None):
            raise InputError(f"give either --prompt with a text or {option} with a file of {what}")
        if file is None:
            return {"prompt": self.prompt, **row, **{name: _ids(name, row[name]) for name in _IDS if name in row}}
        if row:
            keys = " and ".join(f'"{name}"' for name in own if name not in _IDS)
            raise InputError(f"with {option}, give {keys} as keys in the file, not as options")
        return None


class PromptOptions(_Reading, Framing, ExamplesOption):
    """A prompt or a file of prompts."""

    def read(self) -> list[Prompt]:
        """Read and check the prompts.

        Raises:
            InputError: if neither or both of prompt and file are given, or one is invalid.
        """
        raw = self.raw_unless_said()
        row = self._one(self.examples, "--examples", "prompts")
        if row is None:
            return load_examples(str(self.examples), raw=raw)
        with _in_options():
            return load_examples([row], raw=raw)

    def source(self, prompts: list[Prompt]) -> Path | list[Prompt]:
        """Return what the run functions take: the file, or else the prompt."""
        return self.examples or prompts


@dataclass(frozen=True, kw_only=True)
class SubjectPrompts(PromptOptions, SubjectOption, TextOption):
    """Prompts for commands that read selected tokens."""


@dataclass(frozen=True, kw_only=True)
class TargetPrompts(PromptOptions, IdsOptions, FoilOption, TargetOption, TextOption):
    """Prompts for commands that read what follows them."""


@dataclass(frozen=True, kw_only=True)
class AllPrompts(PromptOptions, IdsOptions, FoilOption, TargetOption, SubjectOption, TextOption):
    """Prompts for commands that read selected tokens and what follows."""


class FactSource(_Reading, Framing, FactsOption):
    """A fact or a file of facts."""

    def read(self, of_config: str | None = None) -> "FactFile":
        """Read and check the facts.

        Args:
            of_config: path of the file that a configuration names; an option replaces it.

        Raises:
            InputError: if neither or both of prompt and file are given, or there is no valid fact.
        """
        from interpret.facts.files import FactFile, fact_of, load_facts

        self.raw_unless_said()
        file = self.facts or (Path(of_config) if of_config and self.prompt is None else None)
        row = self._one(file, "--facts", "facts")
        if row is None:
            return load_facts(str(file))
        with _in_options():
            return FactFile([fact_of(row, "fact_0")], [])


@dataclass(frozen=True, kw_only=True)
class TracedFacts(FactSource, FoilOption, TargetOption, SubjectOption, TextOption):
    """Facts that are traced."""


@dataclass(frozen=True, kw_only=True)
class ContrastedFacts(FactSource, FoilOption, TargetOption, SubjectOption, TextOption):
    """Facts whose answer is contrasted with a foil."""


def _ids(name: str, words: str) -> list[int]:
    """Read the token ids of an option."""
    try:
        return [int(token) for token in words.split(",")]
    except ValueError:
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option} {words!r} is not understood; give token ids, such as 3564,11") from None


@contextmanager
def _in_options() -> Iterator[None]:
    """Rephrase errors about the keys of a row: ``"target_ids"`` is ``--target-ids``."""
    try:
        yield
    except InputError as error:
        message = _QUOTED.sub(lambda found: f"--{_OPTIONS.get(found[1], found[1])}", _PLACE.sub("", str(error)))
        raise InputError(message) from None


def tell_framing(prompts: list[Prompt], chat_template: str | None, has_template: bool) -> None:
    """Print whether prompts are put into a chat template, if that was not asked for."""
    messages = sum(not one.raw for one in prompts)
    if not messages or chat_template not in (None, MODEL_TEMPLATE):
        return
    if not has_template:
        say("this model has no chat template: prompts are used without one (see --chat-template)")
    elif chat_template is None:
        which = "the prompt is" if len(prompts) == 1 else f"{messages} of {len(prompts)} prompts are"
        say(f"{which} read as the user's message of a chat (see --raw)")
