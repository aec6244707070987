"""Functions that are given some of their arguments by name, and hide them from whoever calls them."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from inspect import BoundArguments, Parameter, Signature, signature
from typing import Any

from interpret.errors import InputError


def injected(function: Callable[..., Any], names: Sequence[str], give: Callable[[str], Any]) -> Callable[..., Any]:
    """Return a function that takes the arguments of another but for some, which it is given at each call.

    Args:
        function: takes each name as an argument, or any by ``**``.
        names: of the arguments that are given.
        give: returns what is given under a name.

    Raises:
        InputError: for a name that comes twice, or that the function does not take; at a call, for an argument the
            caller gives besides.
    """
    taken = signature(function)
    _check_takes(function, taken, names)
    hidden = taken.replace(parameters=[each for each in taken.parameters.values() if each.name not in names])

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in names:
            if name in kwargs:
                raise InputError(
                    f"{function.__name__}() is given the tool {name!r} by its experiment: call it without {name}=, "
                    "or rename the argument"
                )
        given = {name: give(name) for name in names}
        bound = _joined(taken, hidden.bind(*args, **kwargs).arguments, given)
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = hidden  # type: ignore[attr-defined]
    return call


def _check_takes(function: Callable[..., Any], taken: Signature, names: Sequence[str]) -> None:
    """Refuse names that cannot be given to a function."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"the tool {name!r} is named twice: name each once")
        parameter = taken.parameters.get(name)
        if parameter is None and _of_kind(taken, Parameter.VAR_KEYWORD) is None:
            raise InputError(
                f"{function.__name__}{taken} takes no argument {name!r}: add it, or do not ask for the tool"
            )
        if parameter is not None and parameter.kind in (
            Parameter.POSITIONAL_ONLY,
            Parameter.VAR_POSITIONAL,
            Parameter.VAR_KEYWORD,
        ):
            raise InputError(f"{function.__name__}{taken} cannot take {name!r} by name: make it a plain argument")


def _joined(taken: Signature, arguments: dict[str, Any], given: dict[str, Any]) -> BoundArguments:
    """Put what the caller gave and what is injected where the function takes it."""
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
