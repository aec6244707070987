"""Where the time of a forward pass goes, and what it writes: milliseconds and bytes, layer by layer.

Hooks tell in which part of the model a pass is. The time from one change of part to the next belongs to the part in
between, so that no time is counted twice or lost. On a GPU every change waits until the device is done.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from interpret.anatomy import Anatomy, anatomy_of, input_device
from interpret.anatomy.passes import evaluating, only_in_this_thread
from interpret.errors import InputError, unknown
from interpret.prompts.batches import pad

Granularity = Literal["layer", "component"]
Part = tuple[str, int, str]
"""Part of the model, layer (-1 for none) and component of the layer ("" for none)."""
EMBEDDINGS, HEAD, REST = ("embeddings", -1, ""), ("head", -1, ""), ("rest", -1, "")


@dataclass(frozen=True)
class Profiled:
    """What a profiled function returned, and what its forward passes took."""

    result: Any
    profile: pd.DataFrame
    """As ``profile`` returns it."""


def profile(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    granularity: Granularity = "layer",
    repeats: int = 5,
) -> pd.DataFrame:
    """Measure a forward pass over some prompts, layer by layer; one pass before warms up.

    Args:
        model: a causal LM of a known family, or its base model, which has no head; it is run without dropout and
            without a cache.
        tokenizer: the model's own. None where all prompts are token ids.
        prompts: texts, or rows of token ids; they run side by side.
        granularity: ``"layer"``: a row a layer; ``"component"``: a row each for its attention, its MLP and its rest
            (norms and additions).
        repeats: how many passes are measured; of each row the median is taken.

    Returns:
        A row for the embeddings, for each layer or component, the head and the rest of the model, with the columns
        ``part`` (``embeddings``, ``layer``, ``head``, ``rest``), ``layer`` (-1 where there is none), ``component``
        (``attention``, ``mlp``, ``rest``, or "" where there is none), ``ms``, ``share`` (of all ms; they add up to 1),
        ``parameter_bytes`` (a tensor that several parts share counts in the first alone) and ``activation_bytes`` (of
        all tensors its operations write, also those that are soon freed). Each column of numbers adds up to the
        whole pass, and the rows of a layer to the layer.

    Raises:
        InputError: for prompts that do not fit, a granularity that does not exist, or fewer than one repeat.
        UnsupportedModelError: for a model of no known family.

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
    """Measure the forward passes that a call makes; it is made once more before, to warm up and to count bytes.

    Args:
        model: whose passes are meant.
        call: runs the model; only the time its passes take is counted, all passes of a call together.
        granularity: as in ``profile``.
        repeats: how many calls are measured; of each row the median is taken.

    Returns:
        What the last call returned, and the table.

    Raises:
        InputError: for a granularity that does not exist, fewer than one repeat, or a call that does not run the model.
        UnsupportedModelError: for a model of no known family.
    """
    if granularity not in get_args(Granularity):
        raise InputError(unknown("granularity", granularity, get_args(Granularity)))
    if repeats < 1:
        raise InputError(f"repeats is {repeats}: measure at least one pass")
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
        raise InputError("nothing to profile: no forward pass of this model was made")
    return Profiled(result, _table(parts, measured, written.bytes))


@dataclass(frozen=True)
class _Measured:
    """A part of the model, and between which modules' beginning and end it runs."""

    part: Part
    spans: tuple[tuple[nn.Module, nn.Module], ...]
    parameters: tuple[nn.Module, ...]
    """The modules whose parameters it holds."""


def _parts(model: PreTrainedModel, granularity: Granularity) -> list[_Measured]:
    """List the parts in the order of the table; a part stands before those it is inside of."""
    anatomy, head = anatomy_of(model), model.get_output_embeddings()
    parts = [_whole(EMBEDDINGS, *_embeddings(anatomy))]
    for index, layer in enumerate(anatomy.layers):
        if granularity == "layer":
            parts.append(_whole(("layer", index, ""), layer))
            continue
        first, last = (layer.get_submodule(path) for path in (anatomy.family.mlp_first, anatomy.family.mlp_last))
        parts.append(_whole(("layer", index, "attention"), layer.get_submodule(anatomy.family.attention)))
        parts.append(_Measured(("layer", index, "mlp"), ((first, last),), (first, last)))
        parts.append(_whole(("layer", index, "rest"), layer))
    if head is not None:
        parts.append(_whole(HEAD, head))
    # The trunk may be run alone.
    return [*parts, _whole(REST, *{id(each): each for each in (model, model.base_model, anatomy.trunk)}.values())]


def _whole(part: Part, *modules: nn.Module) -> _Measured:
    """A part that consists of whole modules."""
    return _Measured(part, tuple((module, module) for module in modules), modules)


def _embeddings(anatomy: Anatomy) -> list[nn.Module]:
    """Return the embeddings of words and positions, as far as they are modules of their own."""
    in_layers = {id(module) for layer in anatomy.layers for module in layer.modules()}
    found = [module for module in anatomy.trunk.modules() if isinstance(module, nn.Embedding)]
    return [module for module in found if id(module) not in in_layers]


def _clock(model: PreTrainedModel) -> Callable[[], int]:
    """Return what tells the time in nanoseconds, once the model's devices have done what they were asked to."""
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
    """Knows in which part of the model this thread is, and how long it has been in each."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.spent: Counter[Part] = Counter()
        """Nanoseconds."""
        self._now = now
        self._inside: list[Part] = []
        self._since = 0

    @property
    def part(self) -> Part | None:
        """The innermost part, or None outside the model."""
        return self._inside[-1] if self._inside else None

    def enter(self, part: Part) -> None:
        """Take note that a part begins."""
        self._turn()
        self._inside.append(part)

    def leave(self, part: Part) -> None:
        """Take note that a part ends, with all that began in it and was broken off."""
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
    """Let the watch follow every pass this thread makes in the block; what other hooks do counts where they are."""
    spans = [(measured.part, *span) for measured in parts for span in measured.spans]
    with ExitStack() as stack:
        for part, first, last in spans:
            enter, leave = _entering(watch, part), _leaving(watch, part)
            stack.callback(first.register_forward_pre_hook(enter, prepend=True).remove)
            stack.callback(last.register_forward_hook(leave, always_call=True).remove)
        yield


def _entering(watch: _Watch, part: Part) -> Callable[..., None]:
    return only_in_this_thread(lambda module, args: watch.enter(part))


def _leaving(watch: _Watch, part: Part) -> Callable[..., None]:
    return only_in_this_thread(lambda module, args, output: watch.leave(part))


class _Written(TorchDispatchMode):
    """Counts the bytes that operations write in each part: new tensors, and those changed in place, but no views."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.bytes: Counter[Part] = Counter()
        self._watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it wrote."""
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
    """Join what was measured in each call, [repeats], with what was counted."""
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
    """Count the bytes of parameters that were not seen before."""
    size = 0
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            size += parameter.numel() * parameter.element_size()
    return size
