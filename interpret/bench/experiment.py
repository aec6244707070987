"""Decorators for user functions that run on one model: provide tools, log calls, test hypotheses, profile."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import Any, overload

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.bench import log as logs
from interpret.bench.hypothesis import HypothesisTest, Method, hypothesis_test, sampled
from interpret.bench.injection import injected
from interpret.bench.log import LoggedRun
from interpret.bench.profiling import Granularity, Profiled, profiled
from interpret.bench.source import model_identity, source_of
from interpret.bench.tools import TOOLS, Make, Tool
from interpret.bench.values import Unstorable
from interpret.errors import InputError, unknown

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]
_ABSENT = object()


class Experiment:
    """Decorators for functions that experiment on one model: tools, a log of calls, hypothesis tests, profiles.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        folder: folder of the logs; created when the first call is logged.

    Example::

        exp = interpret.Experiment(model, tokenizer, folder="experiments")

        @exp.log
        @exp.use_tools("cache", "logit_lens")
        def rank(prompt, token, *, cache, logit_lens):
            return int(logit_lens(cache([prompt]), [token], top=0)["rank"].iloc[-1])

        rank("The capital of France is", " Paris")
        exp.versions("rank")
    """

    @unwrapping
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, folder: str | Path = "experiments"
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.folder = Path(folder)
        self._tools: dict[str, Tool] = dict(TOOLS)
        self._made: dict[str, Any] = {}
        self._identity: dict[str, Any] | None = None

    # ------------------------------------------------------------------------------------------------- tools

    def tools(self) -> dict[str, str]:
        """Return the name of every tool, with a line on what it does."""
        return {name: tool.about for name, tool in self._tools.items()}

    def add_tool(self, name: str, tool: Any = _ABSENT, *, make: Make | None = None, about: str = "") -> None:
        """Add a custom tool.

        Args:
            name: the name under which functions request it.
            tool: the object that these functions receive.
            make: alternative to ``tool``: a function that makes the tool from the model and the tokenizer, called at
                the first use.
            about: a line for ``tools``; by default the first line of the docstring of ``tool`` or ``make``.

        Raises:
            InputError: if the name is taken or is not a valid argument name, or unless exactly one of ``tool`` and
                ``make`` is given.
        """
        if name in self._tools:
            raise InputError(f"tool {name!r} already exists ({self._tools[name].about}): choose another name")
        if not name.isidentifier():
            raise InputError(f"tool name {name!r} is not a valid argument name")
        if (tool is _ABSENT) == (make is None):
            raise InputError(
                f"tool {name!r}: give either the tool, or make=, a function that makes it from model and tokenizer"
            )
        documentation = inspect.getdoc(make if tool is _ABSENT else tool) or ""
        self._tools[name] = Tool(about or documentation.partition("\n")[0], make or (lambda model, tokenizer: tool))

    def use_tools(self, *names: str) -> Decorator:
        """Pass tools to a function as keyword arguments of their names.

        The signature of the decorated function has only the remaining arguments. Each tool is made once, at its first
        use.

        Args:
            names: names of tools, as ``tools`` lists them.

        Raises:
            InputError: if there is no name, or a name is unknown, repeated, or not an argument of the function; at a
                call, if the caller passes such an argument.
        """
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError('use_tools expects names of tools, as in @exp.use_tools("cache", "logit_lens")')
        for name in names:
            if name not in self._tools:
                raise InputError(unknown("tool", name, self._tools))
        return lambda function: injected(function, names, self._tool)

    def _tool(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._tools[name].make(self.model, self.tokenizer)
        return self._made[name]

    # --------------------------------------------------------------------------------------------------- log

    @overload
    def log(self, function: Function) -> Function: ...

    @overload
    def log(self, *, name: str) -> Decorator: ...

    def log(self, function: Function | None = None, *, name: str | None = None) -> Function | Decorator:
        """Log every call of a function: append one line to ``{folder}/{name}.jsonl`` when the call returns.

        A line holds the arguments, result, time, source, model, library versions, torch seed, and the version: a hash
        of the function's own source, its arguments and the model, but not of the time. The following values are
        restored exactly: None, booleans, numbers, strings, lists, tuples, sets, dicts, paths, tensors, numpy arrays,
        DataFrames without a MultiIndex, and dataclasses. A tensor of more than 1000 numbers is stored in its own file.
        Of any other value in a result, only its ``repr`` is kept. Put ``@exp.log`` above ``@exp.use_tools``, so that
        the tools are not logged as arguments.

        Args:
            function: the function to decorate.
            name: name of the log; by default the name of the function.

        Raises:
            InputError: if the name cannot be a file name; at a call, before the function runs, for an argument that
                cannot be stored.
            RunError: at a call, if the line cannot be written.
        """
        if function is None:
            return lambda decorated: self._logged(decorated, name or _name(decorated))
        return self._logged(function, name or _name(function))

    def _logged(self, function: Function, name: str) -> Function:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"invalid log name {name!r}: give @exp.log(name=...) letters, digits, '_', '-', '.'")
        source, signature = source_of(function), inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            try:
                prepared = logs.prepare(self.folder, name, source, self._model_identity(), bound.arguments)
            except Unstorable as error:
                raise Unstorable(
                    f"{error} (if it is a tool, put @exp.log above @exp.use_tools: tools are then not logged)"
                ) from None
            began, start = logs.now(), monotonic()
            result = function(*args, **kwargs)
            prepared.write(result, began, monotonic() - start)
            return result

        return call

    def _model_identity(self) -> dict[str, Any]:
        if self._identity is None:
            self._identity = model_identity(self.model)
        return self._identity

    def versions(self, name: str) -> pd.DataFrame:
        """Return the logged calls of a function, one row per call, the latest last.

        Args:
            name: name of the log.

        Returns:
            The columns ``version``, ``time`` (UTC), ``seconds``, ``model``, and ``arguments`` and ``result`` (both as
            stored JSON, truncated to 100 characters).

        Raises:
            InputError: if there is no such log.
            RunError: if a line is not a valid log line. An incomplete last line is skipped with a warning.
        """
        return logs.versions(self.folder, name)

    def version(self, name: str, version: str) -> LoggedRun:
        """Return the latest call of a version, with its arguments and result restored.

        Args:
            name: name of the log.
            version: a version, as ``versions`` lists it.

        Raises:
            InputError: if there is no such log or version.
            RunError: if a line is not a valid log line, a file is missing, or the module of a dataclass has not been
                imported.
        """
        return logs.read_version(self.folder, name, version)

    # ------------------------------------------------------------------------------------- tests and timings

    @overload
    def test_hypothesis(
        self,
        null: Function,
        *,
        alternative: Function,
        n_samples: int = ...,
        alpha: float = ...,
        method: Method = ...,
        seed: int = ...,
    ) -> HypothesisTest: ...

    @overload
    def test_hypothesis(
        self,
        *,
        alternative: Function,
        n_samples: int = ...,
        alpha: float = ...,
        method: Method = ...,
        seed: int = ...,
    ) -> Decorator: ...

    def test_hypothesis(
        self,
        null: Function | None = None,
        *,
        alternative: Function,
        n_samples: int = 30,
        alpha: float = 0.05,
        method: Method = "welch",
        seed: int = 0,
    ) -> HypothesisTest | Decorator:
        """Test whether two functions return numbers with different means, directly or as a decorator of ``null``.

        Both functions are called with the sample index, 0 to ``n_samples - 1``, as their first argument, followed by
        the arguments of the call. They return one number, such as a measurement on the prompt with this index or with
        this random seed. If both functions use the same prompts, their numbers form pairs: ``method="paired"`` compares
        each prompt with itself, which detects smaller effects.

        Args:
            null: measures the condition without the effect; omitted when used as a decorator.
            alternative: measures the condition with the hypothesised effect.
            n_samples: number of samples from each function.
            alpha: significance level, see ``hypothesis_test``.
            method: ``"welch"`` or ``"permutation"`` for independent samples, ``"paired"`` for pairs.
            seed: random seed of the permutations.

        Returns:
            The result of the test; as a decorator, a function that runs the test.

        Raises:
            InputError: for fewer than two samples, a sample that is not a finite number, or as ``hypothesis_test``
                raises.
        """
        if n_samples < 2:
            raise InputError(f"n_samples is {n_samples}: a test needs at least 2 samples from each function")

        def decorate(function: Function) -> Callable[..., HypothesisTest]:
            @wraps(function)
            def test(*args: Any, **kwargs: Any) -> HypothesisTest:
                samples = [sampled(each, n_samples, *args, **kwargs) for each in (function, alternative)]
                return hypothesis_test(*samples, alpha=alpha, method=method, seed=seed)

            test.__signature__ = _without_first(function)  # type: ignore[attr-defined]
            return test

        return decorate if null is None else decorate(null)()

    @overload
    def profile(self, function: Function) -> Callable[..., Profiled]: ...

    @overload
    def profile(self, *, granularity: Granularity = ..., repeats: int = ...) -> Decorator: ...

    def profile(
        self, function: Function | None = None, *, granularity: Granularity = "layer", repeats: int = 5
    ) -> Callable[..., Profiled] | Decorator:
        """Profile the forward passes of a function, layer by layer; see ``interpret.bench.profile``.

        A call of the decorated function runs the original once to warm up and then ``repeats`` times. It returns a
        ``Profiled``: the last ``result``, and the ``profile``, a table of medians.

        Args:
            function: the function to decorate.
            granularity: ``"layer"`` or ``"component"``.
            repeats: number of measured calls.

        Raises:
            InputError: at a call, if it does not run the model, or an option is invalid.
        """

        def decorate(decorated: Function) -> Callable[..., Profiled]:
            @wraps(decorated)
            def measure(*args: Any, **kwargs: Any) -> Profiled:
                return profiled(
                    self.model, lambda: decorated(*args, **kwargs), granularity=granularity, repeats=repeats
                )

            return measure

        return decorate if function is None else decorate(function)


def _name(function: Function) -> str:
    return str(getattr(function, "__name__", ""))


def _without_first(function: Function) -> inspect.Signature:
    """Return a signature without its first parameter, the sample index."""
    signature = inspect.signature(function)
    parameters: Iterable[inspect.Parameter] = list(signature.parameters.values())[1:]
    return signature.replace(parameters=list(parameters))
