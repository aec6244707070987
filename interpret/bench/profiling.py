"""Profile of a forward pass: milliseconds, parameter bytes and activation bytes, layer by layer.

Hooks record when a pass enters and leaves each part of the model. The time between two such events is attributed to
the innermost active part, so that no time is counted twice or lost. On a GPU, every event synchronises the device.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.cache import token_rows
from interpret.anatomy import Anatomy, anatomy_of, input_device, unwrapping
from interpret.anatomy.changes import Changes
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, unknown
from interpret.prompts.batches import pad

Granularity = Literal["layer", "component"]
Part = tuple[str, int, str]
"""(part of the model, layer or -1, component of the layer or "")."""
EMBEDDINGS, HEAD, REST = ("embeddings", -1, ""), ("head", -1, ""), ("rest", -1, "")


@dataclass(frozen=True)
class Profiled:
    """The return value of a profiled function, and the profile of its forward passes."""

    result: Any
    profile: pd.DataFrame
    """The table, as ``profile`` returns it."""


@unwrapping
def profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    granularity: Granularity = "layer",
    repeats: int = 5,
) -> pd.DataFrame:
    """Profile a forward pass over some prompts, layer by layer, after one warm-up pass.

    Args:
        model: a causal LM of a supported family, or its base model (without unembedding); it runs in evaluation
            mode and without a KV cache.
        tokenizer: the model's tokenizer; None if all prompts are token ids.
        prompts: texts, or rows of token ids; they run as one batch.
        granularity: ``"layer"``: one row per layer; ``"component"``: three rows per layer, for its attention, its MLP
            and the rest (norms and additions).
        repeats: number of measured passes; each row holds the median.

    Returns:
        One row each for the embeddings, every layer or component, the head (unembedding) and the rest of the model,
        with the columns ``part`` (``embeddings``, ``layer``, ``head``, ``rest``), ``layer`` (-1 if none),
        ``component`` (``attention``, ``mlp``, ``rest``, or "" if none), ``ms``, ``share`` (of the total time; sums to
        1), ``parameter_bytes`` (a shared tensor counts only in its first part) and ``activation_bytes`` (of all
        tensors that operations write, including temporary ones). Each numeric column sums to the whole pass, and
        the rows of a layer sum to the layer.

    Raises:
        InputError: for prompts that are too long or empty, an unknown granularity, or fewer than one repeat.
        UnsupportedModelError: for a model that is not of a supported family.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> table = profile(model, None, [[3, 1, 4]])
    >>> table.part.tolist(), table.layer.tolist()
    (['embeddings', 'layer', 'layer', 'head', 'rest'], [-1, 0, 1, -1, -1])
    """
    rows = token_rows(model, tokenizer, prompts)
    batch = pad(rows, 0, side="right", device=input_device(model))

    def run() -> None:
        with torch.no_grad(), evaluating(model):
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

    return profiled(model, run, granularity=granularity, repeats=repeats).profile


def profiled(
    model: PreTrainedModel,
    call: Callable[[], Any],
    *,
    granularity: Granularity = "layer",
    repeats: int = 5,
) -> Profiled:
    """Profile the forward passes of a call; one additional call first warms up and counts bytes.

    Args:
        model: the model whose passes are profiled.
        call: runs the model. Only time inside forward passes counts, summed over all passes of a call.
        granularity: as in ``profile``.
        repeats: number of measured calls; each row holds the median.

    Returns:
        The return value of the last call, and the table.

    Raises:
        InputError: for an unknown granularity, fewer than one repeat, or a call that does not run the model.
        UnsupportedModelError: for a model that is not of a supported family.
    """
    if granularity not in get_args(Granularity):
        raise InputError(unknown("granularity", granularity, get_args(Granularity)))
    if repeats < 1:
        raise InputError(f"repeats is {repeats}; expected at least 1")
    parts = _parts(model, granularity)
    watch, measured = _Watch(_clock(model)), []
    with _hooked(model, parts, watch):
        with _Written(watch) as written:
            call()
        for _ in range(repeats):
            watch.spent.clear()
            result = call()
            measured.append(Counter(watch.spent))
    if not measured[-1]:
        raise InputError("nothing to profile: the call ran no forward pass of this model")
    return Profiled(result, _table(parts, measured, written.bytes))


@dataclass(frozen=True)
class _Measured:
    """A part of the model, and the spans in which it runs: from the start of one module to the end of another."""

    part: Part
    spans: tuple[tuple[nn.Module, nn.Module], ...]
    parameters: tuple[nn.Module, ...]
    """The modules whose parameters count for this part."""


def _parts(model: PreTrainedModel, granularity: Granularity) -> list[_Measured]:
    """List the parts in the order of the table; inner parts come before the parts that contain them."""
    anatomy, head = anatomy_of(model), model.get_output_embeddings()
    parts = [_whole(EMBEDDINGS, *_embeddings(anatomy))]
    for index, layer in enumerate(anatomy.layers):
        if granularity == "layer":
            parts.append(_whole(("layer", index, ""), layer))
            continue
        first, last = anatomy.module(index, "mlp_in"), anatomy.module(index, "mlp_out")
        parts.append(_whole(("layer", index, "attention"), anatomy.module(index, "attn_in")))
        parts.append(_Measured(("layer", index, "mlp"), ((first, last),), (first, last)))
        parts.append(_whole(("layer", index, "rest"), layer))
    if head is not None:
        parts.append(_whole(HEAD, head))
    # Users may also call the trunk directly.
    return [*parts, _whole(REST, *{id(each): each for each in (model, model.base_model, anatomy.trunk)}.values())]


def _whole(part: Part, *modules: nn.Module) -> _Measured:
    """Return a part that consists of whole modules."""
    return _Measured(part, tuple((module, module) for module in modules), modules)


def _embeddings(anatomy: Anatomy) -> list[nn.Module]:
    """Return the embedding modules of tokens and positions outside the layers."""
    in_layers = {id(module) for layer in anatomy.layers for module in layer.modules()}
    found = [module for module in anatomy.trunk.modules() if isinstance(module, nn.Embedding)]
    return [module for module in found if id(module) not in in_layers]


def _clock(model: PreTrainedModel) -> Callable[[], int]:
    """Return a function that synchronises the model's devices and returns the time in nanoseconds."""
    devices = {parameter.device for parameter in model.parameters()}
    gpus = [device for device in devices if device.type == "cuda"]

    def now() -> int:
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
        if any(device.type == "mps" for device in devices):
            torch.mps.synchronize()
        return perf_counter_ns()

    return now


class _Watch:
    """Tracks the part of the model that this thread is in, and the time spent in each part."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.spent: Counter[Part] = Counter()
        """Nanoseconds per part."""
        self._now = now
        self._inside: list[Part] = []
        self._since = 0

    @property
    def part(self) -> Part | None:
        """The innermost part, or None outside the model."""
        return self._inside[-1] if self._inside else None

    def enter(self, part: Part) -> None:
        """Record that a part begins."""
        self._turn()
        self._inside.append(part)

    def leave(self, part: Part) -> None:
        """Record that a part ends, together with any inner parts that an error interrupted."""
        self._turn()
        while self._inside and self._inside.pop() != part:
            pass

    def _turn(self) -> None:
        now = self._now()
        if self.part is not None:
            self.spent[self.part] += now - self._since
        self._since = now


@contextmanager
def _hooked(model: PreTrainedModel, parts: Sequence[_Measured], watch: _Watch) -> Iterator[None]:
    """Let the watch follow every pass of this thread inside the block; time in other hooks counts for their part."""
    spans = [(measured.part, *span) for measured in parts for span in measured.spans]
    with Changes() as change, change:
        for part, first, last in spans:
            change.before(first, _entering(watch, part), first=True)
            change.after(last, _leaving(watch, part), always_call=True)
        yield


def _entering(watch: _Watch, part: Part) -> Callable[..., None]:
    return lambda module, args, kwargs: watch.enter(part)


def _leaving(watch: _Watch, part: Part) -> Callable[..., None]:
    return lambda module, args, output: watch.leave(part)


class _Written(TorchDispatchMode):
    """Counts the bytes written by operations in each part: new tensors and in-place changes, but not views."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.bytes: Counter[Part] = Counter()
        self._watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count the bytes it wrote."""
        output = func(*args, **(kwargs or {}))
        part = self._watch.part
        if part is not None and not func.overloadpacket.__name__.startswith(("empty", "new_empty")):
            read = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
            written = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
            self.bytes[part] += sum(
                value.numel() * value.element_size()
                for value in written
                if func._schema.is_mutable or _storage(value) not in read
            )
        return output


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _table(parts: Sequence[_Measured], measured: Sequence[Counter[Part]], written: Counter[Part]) -> pd.DataFrame:
    """Make the table from the measured times, one counter per repeat, and the bytes written."""
    columns = ("part", "layer", "component")
    table = pd.DataFrame([dict(zip(columns, of.part, strict=True)) for of in parts])
    spent = pd.DataFrame([[times[of.part] for of in parts] for times in measured])
    table["ms"] = spent.median() / 1e6
    table["share"] = table["ms"] / table["ms"].sum()
    seen: set[int] = set()
    table["parameter_bytes"] = [_parameter_bytes(of.parameters, seen) for of in parts]
    table["activation_bytes"] = [written[of.part] for of in parts]
    return table


def _parameter_bytes(modules: Sequence[nn.Module], seen: set[int]) -> int:
    """Count the bytes of parameters that are not yet in ``seen``, and add them to it."""
    size = 0
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            size += parameter.numel() * parameter.element_size()
    return size
