"""Find the row of a family that nobody described, by inspection and one traced pass, and prove it.

A layer's modules are told apart by what they read and write: attention and MLP are the modules whose outputs add up to
the change of the residual stream, a norm before them reads the stream and writes what they read, and so on. Names only
order what remains. Where layers differ, as in hybrids with state space models, each is looked at. If nothing adds up,
the row names only the layers, whose residual stream can be read and edited. A row is returned only if ``agreement``
finds no difference between it and the model.
Shapes: 2 texts, T tokens, D hidden width.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interpret.anatomy.agreement import check_head, check_insides, check_parts, check_scores
from interpret.anatomy.agreement_pass import own_result, two_texts
from interpret.anatomy.anatomy import anatomy_of, base_of, check_decoder_only, check_uncompiled, text_config
from interpret.anatomy.changes import Changes
from interpret.anatomy.difference import apart
from interpret.anatomy.failures import FAILURES, failure
from interpret.anatomy.families import (
    FAMILIES,
    Block,
    Experts,
    Family,
    Fused,
    Parts,
    Rotary,
    register_family,
    using_family,
)
from interpret.anatomy.neurons import has_neurons, neuron_numbers
from interpret.anatomy.passes import evaluating, without_own_hooks
from interpret.anatomy.wrappers import unwrapping
from interpret.errors import UnsupportedModelError

_SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"logit_scale": "logit_scale"},
    {"logit_divisor": "logits_scaling"},
    {"logit_scale": "logits_scaling"},
    {"final_softcap": "final_logit_softcapping"},
    {"logit_scale": "lm_head_multiplier"},  # FalconH1
    {"logit_divisor": "logits_mup_width_multiplier"},  # Inkling
    {"final_softcap": "logits_soft_cap"},  # RecurrentGemma
    {"final_softcap": "output_logit_soft_cap"},  # xLSTM
)
"""The fields about logits, with the names that their settings have in other families."""
_FUSED: tuple[Fused, ...] = ("blocks", "groups", "quarters")
_ROTARY: tuple[Rotary, ...] = ("", "halves", "pairs")


@unwrapping
def describe(model: PreTrainedModel) -> Family:
    """Find the row of a model's family, and prove it on the model; nothing is registered.

    The modules are found by what they read and write in one pass of two short texts. The row is then compared with the
    model's own logits, residual stream, heads and neurons, as every row is before it is used.

    Args:
        model: a causal LM.

    Returns:
        A row for ``register_family``; ``print`` shows it as the lines to write. Without ``parts``, if the layers
        cannot be run part by part; without attention and MLP, if no modules write what the layers add.

    Raises:
        UnsupportedModelError: if no row is right; the message says what was looked for.

    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> describe(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2)).eval()).layers
    'h'
    """
    check_decoder_only(model)
    check_uncompiled(model)
    if not _is_causal(model):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be described: only causal language models of transformers can be, which "
            "have get_output_embeddings()"
        )
    try:
        row = _proved_parts(model, _proved_outline(model, _Look.at(model)))
        return _with_experts(model, row)
    except FAILURES as error:
        raise _nothing_found(model, failure(error)) from error


def describe_if_unknown(model: PreTrainedModel) -> UnsupportedModelError | None:
    """Register the row of a causal LM whose family has none, if it can be found, and say so in a warning.

    Returns:
        Why no row was found; None if there is a row, or the model is no causal LM.
    """
    if not _is_causal(model) or text_config(model).model_type in FAMILIES:
        return None
    try:
        row = describe(model)
    except UnsupportedModelError as error:
        return error
    register_family(row)
    how = "its layers are run part by part" if row.parts else "its layers cannot be run part by part"
    if not (row.attention or row.mixer or row.mlp_last):
        how = "only its residual stream can be read and edited"
    warnings.warn(
        f"the family {row.name!r} has no row; one was found by inspection and proved on this model ({how}). "
        "print(interpret.describe(model)) shows it",
        stacklevel=3,
    )
    return None


def _is_causal(model: Any) -> bool:
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder:
        return False
    return model.get_output_embeddings() is not None


@dataclass(frozen=True)
class _Call:
    """One call of a module of the first layer, or of the trunk."""

    path: str
    module: nn.Module
    read: Tensor
    wrote: Tensor
    """A copy of what the module returned."""
    returned: Tensor
    """What it returned, which the layer may have changed in place since."""


@dataclass(frozen=True)
class _Look:
    """What was seen of one layer of a model, and of what comes after all, in one pass."""

    model: PreTrainedModel
    trunk: str
    layers: str
    calls: list[_Call]
    """Of the modules inside the layer, in the order of their ends."""
    after: list[_Call]
    """Of the modules that the trunk calls after its last layer."""
    before: Tensor
    """The input of the layer, [2, T, D]."""
    written: Tensor
    """Its output."""

    @classmethod
    @torch.no_grad()
    def at(cls, model: PreTrainedModel, layer: int = 0) -> "_Look":
        base = base_of(model)
        trunk, layers = _find_layers(base)
        blocks: Any = base.get_submodule(trunk).get_submodule(layers)
        calls, after, whole, last = list[_Call](), list[_Call](), list[_Call](), list[_Call]()
        with without_own_hooks(), evaluating(model), Changes() as change, change:
            for path, module in blocks[layer].named_modules():
                _keep(change, path, module, calls if path else whole)
            _keep(change, "", blocks[-1], last)
            for path, module in base.get_submodule(trunk).named_children():
                if module is not blocks:
                    _keep(change, path, module, after, once=last)
            own_result(model, two_texts(model))
        if not whole:
            raise _nothing_found(model, f"the modules of {layers!r} were not called with tensors")
        return cls(model, trunk, layers, calls, after, whole[0].read, whole[0].wrote)

    def same(self, one: Tensor, other: Tensor) -> bool:
        """Return whether two tensors hold the same numbers, up to rounding."""
        exact = self.before.dtype in (torch.float32, torch.float64)
        return one.numel() == other.numel() and apart(exact, one.reshape(other.shape), other, tolerance=1e-4) is None

    def reads(self, value: Tensor) -> list[_Call]:
        """Return the calls that read a value."""
        return [call for call in self.calls if self.same(call.read, value)]


def _keep(
    change: Changes, path: str, module: nn.Module, calls: list[_Call], once: Sequence[_Call] | None = None
) -> None:
    """Record the calls of a module; those with ``once`` only after a call in it."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        wrote = output[0] if isinstance(output, tuple) else output
        if read is not None and isinstance(wrote, Tensor) and (once is None or once):
            calls.append(_Call(path, module, read, wrote.clone(), wrote))

    change.after(module, hook, with_kwargs=True)


def _find_layers(base: PreTrainedModel) -> tuple[str, str]:
    """Return the path of the module that runs the layers, and that of their list, relative to it."""
    lists = {
        path: len(module)
        for path, module in base.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(any(part.children()) for part in module)
    }
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]  # no experts of layers
    if not outer:
        raise _nothing_found(base, "it has no list of layers (nn.ModuleList)")
    path = max(outer, key=lists.__getitem__)
    names = path.split(".")
    inside = [".".join(names[:n]) for n in range(len(names))]
    trunk = next(name for name in reversed(inside) if isinstance(base.get_submodule(name), PreTrainedModel))
    return trunk, path.removeprefix(f"{trunk}.")


def _nothing_found(model: nn.Module, missing: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(model).__name__} cannot be described: {missing}. Looked for: a list of layers; in them modules, such "
        "as attention and MLP, whose outputs add up to what a layer adds to its input, and norms before them; after "
        "the layers a norm and the unembedding. docs/architecture.md, 'Describing another family', shows how to write "
        "the row yourself"
    )


# ------------------------------------------------------------------------------------------ outline: attention and MLP


def _proved_outline(model: PreTrainedModel, look: _Look) -> Family:
    """Return a row without parts that gives the model's own residual stream and logits.

    Raises:
        UnsupportedModelError: if none does, with the last difference found.
    """
    problem = ""
    for outline in chain(_outlines(look), _mixing_outlines(look), [_layers_alone(look)]):
        for settings in _SETTINGS:
            if all(hasattr(text_config(model), name) for name in settings.values()):
                row = replace(outline, **settings)
                try:
                    _check(model, row, check_parts, check_head)
                except UnsupportedModelError as error:
                    problem = problem if settings else str(error)  # in the end, of the row that names the least
                else:
                    return row
    raise _nothing_found(model, problem)


def _outlines(look: _Look) -> Iterator[Family]:
    """Yield rows without parts in which attention and MLP add up to the first layer's output."""
    factor = _residual_setting(look.model)
    for pair in _pairs(look):
        middle = look.before + _residual_scale(look.model) * _like(pair[0].wrote, look)
        if (row := _outline(look, *pair, middle, factor)) is not None:
            yield row


def _pairs(look: _Look) -> list[tuple[_Call, _Call]]:
    """Return calls of two modules whose outputs the layer adds to its input, the MLP second, the outer modules first.

    What an MLP returns is what its last layer returns.
    """
    scale, wide = _residual_scale(look.model), _as_wide_as_the_stream(look)
    pairs = [
        (one, other)
        for index, one in enumerate(wide)
        for other in wide[index + 1 :]
        if look.same(look.before + scale * (_like(one.wrote, look) + _like(other.wrote, look)), look.written)
    ]
    pairs.sort(key=lambda pair: (len(pair[0].path) + len(pair[1].path), pair[0].path))
    return [(one, other) if not _is_mlp(one.path) else (other, one) for one, other in pairs]


def _as_wide_as_the_stream(look: _Look) -> list[_Call]:
    return [call for call in look.calls if call.wrote.numel() == look.before.numel()]


def _mixing_outlines(look: _Look) -> Iterator[Family]:
    """Yield rows of layers that mix tokens without attention, or of which some do; at most one."""
    n_layers = len(base_of(look.model).get_submodule(look.trunk).get_submodule(look.layers))
    looks = [look, *(_Look.at(look.model, layer) for layer in range(1, n_layers))]
    added = [_added_by(each) for each in looks]
    if not all(added):
        return
    mlps = {tuple(call.path for call in calls[1:]) for calls in added}
    attending = [_is_attention(calls[0]) for calls in added]
    attention = dict.fromkeys(calls[0].path for calls, attends in zip(added, attending, strict=True) if attends)
    mixers = dict.fromkeys(calls[0].path for calls, attends in zip(added, attending, strict=True) if not attends)
    if len(mlps) > 1 or len(attention) > 1 or not mixers or set(attention) & set(mixers):
        return
    mlp = "".join(mlps.pop())
    norms = [] if not mlp else _norms(look, look.before + _residual_scale(look.model) * _like(added[0][0].wrote, look))
    yield Family(
        text_config(look.model).model_type, look.trunk, look.layers, "".join(attention), mlp, mlp,
        norms[0].path if norms else "", _final(look), mixer="|".join(mixers),
        residual_scale=_residual_setting(look.model),
    )  # fmt: skip


def _added_by(look: _Look) -> list[_Call]:
    """Return the calls of the module, or of the two, whose output a layer adds to its input; none if none adds up."""
    scale = _residual_scale(look.model)
    alone = [call for call in _as_wide_as_the_stream(look) if look.same(
        look.before + scale * _like(call.wrote, look), look.written
    )]  # fmt: skip
    if alone:
        return [min(alone, key=lambda call: len(call.path))]
    pairs = _pairs(look)
    return list(pairs[0]) if pairs else []


def _is_attention(call: _Call) -> bool:
    """Return whether a module is attention by its names; linear attention has no probabilities."""
    return re.search("att", call.path.lower()) is not None and "linear" not in call.path.lower()


def _layers_alone(look: _Look) -> Family:
    """Return the row that names no module inside the layers."""
    return Family(text_config(look.model).model_type, look.trunk, look.layers, "", "", "", "", _final(look))


def _residual_setting(model: PreTrainedModel) -> str:
    return "residual_multiplier" if getattr(text_config(model), "residual_multiplier", None) else ""


def _residual_scale(model: PreTrainedModel) -> float:
    setting = _residual_setting(model)
    return getattr(text_config(model), setting) if setting else 1.0


def _like(value: Tensor, look: _Look) -> Tensor:
    return value.reshape(look.before.shape)


def _is_mlp(path: str) -> bool:
    return re.match(r"mlp|ffn|feed_?forward|fc|block_sparse|moe|dense_h", path.lower()) is not None


def _outline(look: _Look, attention: _Call, mlp: _Call, middle: Tensor, factor: str) -> Family | None:
    """Return the row for modules that write what attention and MLP add; None if the MLP reads neither sum nor input."""
    whole = _whole_attention(look, attention)
    for block, stream in (("sequential", middle), ("parallel", look.before)):
        for norm in [*_norms(look, stream), None]:
            entering = stream if norm is None else norm.wrote
            firsts = [call for call in look.reads(entering) if not _inside(call.path, whole) and call is not norm]
            firsts = [call for call in firsts if not _is_norm(call)]
            if not firsts:
                continue
            first = min(firsts, key=lambda call: len(call.path)).path
            kind: Block = "parallel" if block == "parallel" else "sequential"
            return Family(
                text_config(look.model).model_type, look.trunk, look.layers, whole, first, mlp.path,
                "" if norm is None else norm.path, _final(look), attention_last="" if attention.path == whole
                else attention.path, block=kind, residual_scale=factor,
                overwrites_mlp=not look.same(mlp.returned, mlp.wrote),
            )  # fmt: skip
    return None


def _whole_attention(look: _Look, last: _Call) -> str:
    """Return the path of the attention whose output, or whose normed output, is written by ``last``."""
    children = [call.path for call in look.calls if re.search("att", call.path.lower()) and not _is_norm(call)]
    outer = [path for path in children if not any(_inside(path, other) for other in children if other != path)]
    return min(outer, key=len, default=last.path)


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _is_norm(call: _Call) -> bool:
    return "norm" in type(call.module).__name__.lower()


def _norms(look: _Look, stream: Tensor) -> list[_Call]:
    return [call for call in look.reads(stream) if _is_norm(call)]


def _final(look: _Look) -> tuple[str, ...]:
    """Return the modules between the last layer and the unembedding."""
    names = (call.path for call in look.after if not isinstance(call.module, nn.Dropout))
    return tuple(name for name in dict.fromkeys(names) if "rotary" not in name)


# ---------------------------------------------------------------------------------------------------- parts


def _proved_parts(model: PreTrainedModel, outline: Family) -> Family:
    """Return the row with its parts, if any are right; else the outline."""
    if not outline.attention or outline.mixer:
        return outline
    look = _Look.at(model)
    for parts in _all_parts(look, outline):
        if _is_right(model, replace(outline, parts=parts), check_insides):
            for rotary, softcap in product(_ROTARY, ("", "attn_logit_softcapping")):
                row = replace(outline, parts=replace(parts, rotary=rotary), softcap=softcap)
                if _is_right(model, row, check_scores):
                    return row
    return outline


def _with_experts(model: PreTrainedModel, row: Family) -> Family:
    """Return the row with the experts of its MLPs, if their neurons give what the MLPs write."""
    if not row.mlp_first or (row.parts is not None and row.parts.down):
        return row
    candidate = replace(row, experts=Experts())
    with using_family(candidate):
        anatomy = anatomy_of(model)
        layers = range(len(anatomy.layers))
        readable = all(has_neurons(anatomy, layer) for layer in layers)
        mixed = readable and any(neuron_numbers(anatomy, layer).experts for layer in layers)
    return candidate if mixed and _is_right(model, candidate, check_insides) else row


def _all_parts(look: _Look, row: Family) -> Iterator[Parts]:
    """Yield the parts that fit what the modules of the first layer read and write, without rotary embeddings."""
    by_path = {call.path: call for call in look.calls}
    attention, last = by_path[row.attention], by_path[row.attention_output]
    norm = next((call for call in _norms(look, look.before) if look.same(call.wrote, attention.read)), None)
    linear = [call for call in look.calls if isinstance(call.module, nn.Linear | Conv1D)]
    within = [call for call in linear if _inside(call.path, row.attention)]
    projections = [call.path for call in within if look.same(call.read, attention.read)]
    outs = [call.path for call in within if look.same(call.wrote, attention.wrote)] or [
        call.path for call in within if call.path not in projections
    ]
    if len(projections) not in (1, 3) or not outs:
        return
    ordered = tuple(sorted(projections, key=_query_key_value))
    norms = [call.path for call in look.calls if _inside(call.path, row.attention) and _is_norm(call)]
    common: dict[str, Any] = {
        "query_norm": next((path for path in norms if re.search(r"\.q", path)), ""),
        "key_norm": next((path for path in norms if re.search(r"\.k", path)), ""),
        "attention_after": last.path if _is_norm(last) else "",
    }
    packings: Sequence[Fused] = _FUSED if len(ordered) == 1 else ("",)
    for mlp, fused, offset in product(_mlps(look, row, linear), packings, (0.0, 1.0)):
        yield Parts(
            "" if norm is None else norm.path, ordered, outs[0], **mlp, **common, fused=fused, norm_offset=offset
        )


def _query_key_value(path: str) -> int:
    return min((index for index, letter in enumerate("qkv") if letter in path.rsplit(".", 1)[-1][:5]), default=3)


def _mlps(look: _Look, row: Family, linear: Sequence[_Call]) -> Iterator[dict[str, Any]]:
    """Yield the fields about the MLP: its projections and activation, or none if it is run as a whole."""
    by_path = {call.path: call for call in look.calls}
    first, last = by_path[row.mlp_first], by_path[row.mlp_last]
    after = {"mlp_after": last.path} if _is_norm(last) else {}
    outside = [call for call in linear if not _inside(call.path, row.attention)]
    ups = [call for call in outside if look.same(call.read, first.read)]
    downs = [call for call in outside if call not in ups and (after or look.same(call.wrote, last.wrote))]
    for activation, down in product(_activations(look, row), downs):
        for up, gate in _ups_and_gates(ups, down):
            yield {"up": up, "gate": gate, "activation": activation, "down": down.path, **after}
    yield dict(after)


def _ups_and_gates(ups: Sequence[_Call], down: _Call) -> Iterator[tuple[str, str]]:
    if len(ups) == 1:
        yield ups[0].path, ups[0].path if ups[0].wrote.shape[-1] == 2 * down.read.shape[-1] else ""
    elif len(ups) == 2:
        yield ups[1].path, ups[0].path
        yield ups[0].path, ups[1].path


def _activations(look: _Look, row: Family) -> list[str]:
    """Return the paths of what may be the MLP's activation function: modules, or functions as in OPT."""
    found = [call.path for call in look.calls if re.search(r"(^|\.)(act|gelu|nonlin)", call.path.lower())]
    block: Any = base_of(look.model).get_submodule(row.trunk).get_submodule(row.layers)[0]
    named = ("activation_fn", "act", "activation")
    return list(dict.fromkeys([*found, *(name for name in named if callable(getattr(block, name, None)))]))


# ---------------------------------------------------------------------------------------------------- proof


def _is_right(model: PreTrainedModel, row: Family, check: Any) -> bool:
    """Return whether a check of a model with a row succeeds; a wrong row may also not fit the model at all."""
    try:
        _check(model, row, check)
    except UnsupportedModelError:
        return False
    except FAILURES as error:
        failure(error)  # not if memory ran out
        return False
    return True


def _check(model: PreTrainedModel, row: Family, *checks: Any) -> None:
    """Run checks of a model with a row in place of that of its family.

    Raises:
        UnsupportedModelError: if the row is wrong.
    """
    with using_family(row):
        for check in checks:
            check(model)
