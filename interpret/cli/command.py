"""How a function becomes a command: options in groups, errors worded by options, exit codes.

A command takes groups of options as frozen dataclasses, each field an option: ``loading: Loading`` in its signature
stands for ``--device``, ``--dtype`` and the others. What the library says of its arguments (``batch_size is 0``) is
said of the options that were typed (``--batch-size is 0``), here and nowhere else.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from interpret.cli.console import INTERRUPTED, err, say
from interpret.cli.work import NotAllError
from interpret.errors import InterpretError

NOT_DONE, NOT_ALL = 2, 3
"""Exit codes: something the user can mend; all is done, but for some units."""
LIBRARY = {"contrast_targets": "foil", "max_new_tokens": "new_tokens", "n_permutations": "permutations"}
"""Arguments of the library -> the commands' name for the same, where it is another one."""
_QUOTED = r"(?<!\w)(?:'[^'\n]*'|\"[^\"\n]*\")(?!\w)"
_OF_OPTIONS = (
    r"(?m)^ *({})(?=: )",
    r"\b({})(?= (?:and|or) --)",
    r"\bgive ({})(?=$| for\b|[,.;])",
    rf"^({{}})(?= {_QUOTED} (?:is not understood; give (?:pairs|first:end)|has no value))",
)
"""Places in which a single word is the name of an option."""


def add_command(app: typer.Typer, name: str, command: Callable[..., None]) -> None:
    """Make a function a command of an app.

    Args:
        app: the command line, or a part of it.
        name: of the command.
        command: its parameters are options and arguments, or dataclasses of options. Its docstring is its help, and
            the beginning of that, up to a colon or full stop, what a list of commands says of it.
    """
    app.command(name, cls=_Command, short_help=clause(str(command.__doc__)))(_spread(command))


def clause(text: str) -> str:
    """Return the beginning of a text, up to a colon or full stop: what a list of commands says of one.

    >>> clause("Trace where a model keeps facts: one CSV row a fact.")
    'Trace where a model keeps facts'
    """
    return re.split(r"[:.](?:\s|$)", text)[0]


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Name the options in a message that names the arguments they become.

    A name of several words is an option wherever it stands unquoted. One of a single word is so only where it cannot
    be plain English: before a colon at the beginning of a line, before another option, or as what is to be given.

    Args:
        message: of the library.
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
    """Say what a user can mend."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)


class _Command(TyperCommand):
    """A command that words what goes wrong by its own options."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a user's mistake is one message, never a traceback."""
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


def _options(parameters: Sequence[Any]) -> dict[str, str]:
    """Return the option of each parameter of a command, by its name and by the option's own."""
    found = {}
    for one in parameters:
        for option in one.opts:
            if option.startswith("--"):
                found[one.name] = found[option.removeprefix("--").replace("-", "_")] = option
    return found


def _spread(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the options of its groups one by one."""
    groups: dict[str, Any] = {}
    parameters: list[Parameter] = []
    for one in signature(command).parameters.values():
        if is_dataclass(one.annotation):
            groups[one.name] = one.annotation
            parameters += map(_parameter, fields(one.annotation))
        else:
            parameters.append(one.replace(kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def spread(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    vars(spread)["__signature__"] = Signature(parameters)
    spread.__annotations__ = {one.name: one.annotation for one in parameters}
    return spread


def _parameter(field: Field[Any]) -> Parameter:
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=field.type)
