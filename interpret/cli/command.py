"""Make a function a command: groups of options, errors that name options, exit codes.

A command takes groups of options as frozen dataclasses in which each field is an option: the parameter ``loading:
Loading`` adds ``--device``, ``--dtype`` and others. Error messages of the library name arguments (``batch_size is 0``);
``in_options`` replaces these by the names of options (``--batch-size is 0``).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, cleandoc, signature
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from interpret.cli.console import INTERRUPTED, NOT_ALL, NOT_DONE, err, quietly, say
from interpret.cli.work import NotAllError
from interpret.errors import InterpretError

HELP = ["--help", "-h"]
"""Options that show the help text of any command."""
QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors and the reasons for what was dropped.")
]
LIBRARY = {"contrast_targets": "foil", "max_new_tokens": "new_tokens", "n_permutations": "permutations"}
"""Argument of the library -> parameter of the commands, where the names differ."""
_QUOTED = r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)"
_OF_OPTIONS = (
    r"(?m)^ *({})(?=: )",
    r"(?<![\w-])({})(?= (?:and|or) --)",
    r"\bgive ({})(?=$| for\b|[,.;])",
    rf"^({{}})(?= {_QUOTED} (?:is not understood; give (?:pairs|first:end)|has no value))",
)
"""Places in a message where a single word is the name of an option."""
_READS_EXAMPLES = re.compile(r" examples/\w")
_WHERE_EXAMPLES_ARE = "'interpret examples' writes the files of the folder examples."


def add_command(app: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Add a function to an app as a command.

    Args:
        app: the typer app, or one of its groups.
        name: name of the command.
        command: the function; its parameters are options, arguments, or dataclasses of options. Its docstring is the
            help text; the first clause is shown in the list of commands, see ``clause``.
    """
    text, settings = cleandoc(str(command.__doc__)), {"help_option_names": HELP}
    if _READS_EXAMPLES.search(text):
        text += f"\n\n{_WHERE_EXAMPLES_ARE}"
    app.command(name, cls=_Command, help=text, short_help=clause(text), context_settings=settings)(_spread(command))


def clause(text: str) -> str:
    """Return a text up to its first colon or full stop, as the list of commands shows it.

    >>> clause("Locate facts by attribution: one CSV row per fact.")
    'Locate facts by attribution'
    """
    return re.split(r"[:.](?:\s|$)", text)[0]


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Replace names of arguments in a message by the corresponding options.

    A name of several words is replaced wherever it is not quoted. A name of a single word may be plain English, so it
    is replaced only before a colon at the start of a line, before another option, after "give", and at the start of
    some messages.

    Args:
        message: an error message of the library.
        options: argument -> option.

    >>> in_options("device and device_map exclude each other", {"device": "--device", "device_map": "--device-map"})
    '--device and --device-map exclude each other'
    """
    named = {**options, **{own: options[name] for own, name in LIBRARY.items() if name in options}}
    several = "|".join(name for name in named if "_" in name)
    single = "|".join(name for name in named if "_" not in name)
    if several:
        unquoted = rf"{_QUOTED}|(?<![\w./-])(?:{several})(?![\w/-]|\.\w)"
        message = re.sub(unquoted, lambda found: named.get(found[0], found[0]), message)
    if single:
        for place in _OF_OPTIONS:
            there = place.format(single)
            message = re.sub(there, lambda found: found[0].removesuffix(found[1]) + named[found[1]], message)
    return message


def tell_error(message: str) -> None:
    """Print an error message on stderr."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)


class _Command(TyperCommand):
    """A command whose error messages name its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; print errors that a user can fix without a traceback, and set the exit code."""
        options = _options(self.params)
        try:
            return super().invoke(ctx)
        except InterpretError as error:
            tell_error(in_options(str(error), options))
            raise typer.Exit(NOT_DONE) from None
        except NotAllError as left:
            for unit, reason in left.reasons.items():
                say(f"{unit}: {in_options(reason, options)}")
            if left.more:
                say(left.more)
            raise typer.Exit(NOT_ALL) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            tell_error("memory ran out; use a smaller dtype, a smaller batch size, or another device")
            raise typer.Exit(NOT_DONE) from None


def _is_out_of_memory(error: BaseException) -> bool:
    from interpret.device import is_out_of_memory

    return is_out_of_memory(error)


def _options(parameters: Sequence[Any]) -> dict[str, str]:
    """Return parameter -> option of a command; the option's own name in snake case is also a key."""
    found = {}
    for one in parameters:
        for option in one.opts:
            if option.startswith("--"):
                found[one.name] = found[option.removeprefix("--").replace("-", "_")] = option
    return found


def _spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return a function with one parameter per option, which builds the groups and calls the command."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for one in signature(command).parameters.values():
        if is_dataclass(one.annotation):
            groups[one.name] = one.annotation
            parameters += map(_parameter, fields(one.annotation))
        else:
            parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY))

    parameters.append(Parameter("quiet", Parameter.KEYWORD_ONLY, default=False, annotation=QUIET))

    @wraps(command)
    def spread(*, quiet: bool, **given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        with quietly(quiet):
            command(**given, **made)

    vars(spread)["__signature__"] = Signature(parameters)
    spread.__annotations__ = {one.name: one.annotation for one in parameters}
    return spread


def _parameter(field: Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
