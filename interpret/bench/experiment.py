"""An experiment: functions of a user that are given tools, logged, tested and measured, on one model."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from time import monotonic
from typing import Any, overload

import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
    """A bench with one model on it. Decorators give functions tools, log their calls, test and measure them.

    Args:
        model: a causal LM of a known family.
        tokenizer: its own.
        folder: where logs go; it is made when the first call is logged.

    Example::

        exp = interpret.Experiment(model, tokenizer, folder="experiments")

        @exp.log
        @exp.use_tools("cache", "logit_lens")
        def rank(prompt, token, *, cache, logit_lens):
            return int(logit_lens(cache([prompt]), [token], top=0)["rank"].iloc[-1])

        rank("The capital of France is", " Paris")
        exp.versions("rank")
    """

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
        """Return what can be asked for: a name, and a line on what it does."""
        return {name: tool.about for name, tool in self._tools.items()}

    def add_tool(self, name: str, tool: Any = _ABSENT, *, make: Make | None = None, about: str = "") -> None:
        """Add a tool of one's own.

        Args:
            name: by which functions ask for it.
            tool: what they are given.
            make: instead of ``tool``: makes it of the model and the tokenizer, when it is first asked for.
            about: a line for ``tools``; by default the first of the tool's own documentation.

        Raises:
            InputError: for a name that is taken or cannot be an argument's, or unless one of ``tool`` and ``make``
                is given.
        """
        if name in self._tools:
            raise InputError(f"there is a tool {name!r} already ({self._tools[name].about}): choose another name")
        if not name.isidentifier():
            raise InputError(f"a tool cannot be called {name!r}: give a name an argument can have")
        if (tool is _ABSENT) == (make is None):
            raise InputError(
                f"tool {name!r}: give either the tool itself, or make=, which makes it of model and tokenizer"
            )
        documentation = inspect.getdoc(make if tool is _ABSENT else tool) or ""
        self._tools[name] = Tool(about or documentation.partition("\n")[0], make or (lambda model, tokenizer: tool))

    def use_tools(self, *names: str) -> Decorator:
        """Give a function tools, under their names; each is made once, when it is first asked for.

        The decorated function takes the other arguments alone.

        Args:
            names: of tools, as ``tools`` lists them.

        Raises:
            InputError: for no name, a name that does not exist or comes twice, or that the function does not take;
                at a call, if the caller gives an argument of such a name.
        """
        if not names or not all(isinstance(name, str) for name in names):
            raise InputError('use_tools takes names of tools, as in @exp.use_tools("cache", "logit_lens")')
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
        """Log every call of a function: a line of ``{folder}/{name}.jsonl``, appended when the call returns.

        A line holds arguments, result, time, source, model, versions of libraries, torch's seed, and the version: a
        hash of the function's own source, its arguments and the model, without the time. Stored equal are None, truth
        values, numbers, texts, lists, tuples, sets, dicts, paths, tensors, numpy arrays, DataFrames with one level of
        names, and dataclasses; tensors of more than 1000 numbers go into a file each. Of anything else in a result,
        only how it prints is kept. Put ``@exp.log`` above ``@exp.use_tools``: tools are no arguments then.

        Args:
            function: what is decorated.
            name: of the log; the function's by default.

        Raises:
            InputError: for a function or name that no file can be called after; at a call, before it runs, for an
                argument that cannot be stored.
            RunError: at a call, if the disk does not take the line.
        """
        if function is None:
            return lambda decorated: self._logged(decorated, name or _name(decorated))
        return self._logged(function, name or _name(function))

    def _logged(self, function: Function, name: str) -> Function:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"a log cannot be called {name!r}: give @exp.log(name=...) letters, digits, '_', '-', '.'")
        source, signature = source_of(function), inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            try:
                prepared = logs.prepare(self.folder, name, source, self._model_identity(), bound.arguments)
            except Unstorable as error:
                raise Unstorable(
                    f"{error} (tools are no arguments where @exp.log stands above @exp.use_tools)"
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
        """Return what was logged of a function, a row a call, the latest last.

        Args:
            name: of the log.

        Returns:
            The columns ``version``, ``time`` (UTC), ``seconds``, ``model``, ``arguments`` and ``result`` (the
            beginnings of both, as they are stored).

        Raises:
            InputError: if there is no such log.
            RunError: for a line that no log has written. A last line that was cut off is left out, with a warning.
        """
        return logs.versions(self.folder, name)

    def version(self, name: str, version: str) -> LoggedRun:
        """Return the latest call of a version, with its arguments and result as they were.

        Args:
            name: of the log.
            version: as ``versions`` lists it.

        Raises:
            InputError: if there is no such log or version.
            RunError: for a line that no log has written, a file that is missing, or a dataclass whose module has
                not been imported.
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
        """Test whether two functions give different numbers: ``null`` now, or the function that is decorated.

        Both are called with the number of each sample, from 0, before the arguments of the call, and give one number:
        that of the prompt of this number, or of a draw with this seed. Where both functions are about the same prompts,
        the numbers are pairs: ``method="paired"`` compares each prompt with itself, which shows smaller effects.

        Args:
            null: where the effect is said to be absent; left out where this decorates it.
            alternative: where the effect is said to be present.
            n_samples: how many numbers are asked of each.
            alpha: see ``hypothesis_test``.
            method: ``"welch"`` or ``"permutation"``, of independent numbers; or ``"paired"``.
            seed: of the permutations.

        Returns:
            The test; of a decorator, a function that makes it.

        Raises:
            InputError: for fewer than two samples, a sample that is no finite number, or as ``hypothesis_test`` does.
        """
        if n_samples < 2:
            raise InputError(f"n_samples is {n_samples}: a test needs at least 2 of each")

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
        """Measure the forward passes a function makes, layer by layer; see ``interpret.profile``.

        The decorated function calls the other once to warm up and then ``repeats`` times, and returns a ``Profiled``:
        the last ``result``, and the ``profile``, a table of medians.

        Args:
            function: what is decorated.
            granularity: ``"layer"`` or ``"component"``.
            repeats: how many calls are measured.

        Raises:
            InputError: at a call that does not run the model, or for other options.
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
    """Return a signature without its first parameter, the number of the sample."""
    signature = inspect.signature(function)
    parameters: Iterable[inspect.Parameter] = list(signature.parameters.values())[1:]
    return signature.replace(parameters=list(parameters))
