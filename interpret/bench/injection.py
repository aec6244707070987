"""Inject arguments into a function by name, and hide them from its signature."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import BoundArguments, Parameter, Signature, signature
from typing import Any

from interpret.errors import InputError


def injected(function: Callable[..., Any], names: Sequence[str], give: Callable[[str], Any]) -> Callable[..., Any]:
    """Return a function without some of the arguments of another, which are injected at each call.

    Args:
        function: takes an argument of each name, or has ``**kwargs``.
        names: names of the injected arguments.
        give: returns the value to inject for a name.

    Raises:
        InputError: if a name is repeated, or is not an argument of the function; at a call, if the caller passes an
            injected argument.
    """
    taken = signature(function)
    _check_takes(function, taken, names)
    hidden = taken.replace(parameters=[each for each in taken.parameters.values() if each.name not in names])

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in names:
            if name in kwargs:
                raise InputError(
                    f"{function.__name__}() receives the tool {name!r} from its experiment: call it without {name}=, "
                    "or rename the argument"
                )
        given = {name: give(name) for name in names}
        bound = _joined(taken, hidden.bind(*args, **kwargs).arguments, given)
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = hidden  # type: ignore[attr-defined]
    return call


def _check_takes(function: Callable[..., Any], taken: Signature, names: Sequence[str]) -> None:
    """Refuse names that are repeated or cannot be passed to the function."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"tool {name!r} is requested twice: name each tool once")
        parameter = taken.parameters.get(name)
        if parameter is None and _of_kind(taken, Parameter.VAR_KEYWORD) is None:
            raise InputError(f"{function.__name__}{taken} has no argument {name!r}: add it, or do not request the tool")
        if parameter is not None and parameter.kind in (
            Parameter.POSITIONAL_ONLY,
            Parameter.VAR_POSITIONAL,
            Parameter.VAR_KEYWORD,
        ):
            raise InputError(
                f"{function.__name__}{taken} cannot receive {name!r} by keyword: make it a regular argument"
            )


def _joined(taken: Signature, arguments: dict[str, Any], given: dict[str, Any]) -> BoundArguments:
    """Combine the caller's arguments and the injected ones into a call of the function."""
    named = {name: value for name, value in given.items() if name in taken.parameters}
    rest = {name: value for name, value in given.items() if name not in named}
    arguments = arguments | named
    catch_all = _of_kind(taken, Parameter.VAR_KEYWORD)
    if rest and catch_all is not None:
        arguments[catch_all] = arguments.get(catch_all, {}) | rest
    return BoundArguments(taken, arguments)


def _of_kind(taken: Signature, kind: Any) -> str | None:
    """Return the name of the first parameter of a kind."""
    return next((name for name, parameter in taken.parameters.items() if parameter.kind is kind), None)
