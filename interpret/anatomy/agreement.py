"""Compare what is computed from a model's states with the model's own logits, once per model.

Logits are computed from states in many places: attribution, the logit lens, interpretations, traces. All of them are
right only if (1) no token attends to later ones, (2) word embeddings give the same first layer input as their ids, and
(3) the final norm, the unembedding and the settings of the family's row turn states into the model's own logits.
Likewise, recorded outputs of attention and MLP are what they are said to be only if (4) they add up to the residual
stream. One forward pass of two short texts checks all four. Its result is kept as long as the model's modules, its
configuration and its family's row stay the same; new weights in the same modules need no new check.
Shapes: 2 texts, T tokens, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from inspect import signature
from math import nan
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy.anatomy import Anatomy, anatomy_of, base_of, check_is_model, check_uncompiled
from interpret.anatomy.calls import decode_translation, first_layer_input, input_device, layer_input, longest_text
from interpret.anatomy.changes import Changes
from interpret.anatomy.families import FAMILIES
from interpret.anatomy.insides import Comparison, attending, inputs_inside, inside, outputs_inside
from interpret.anatomy.passes import evaluating, foreign_changes, without_own_hooks
from interpret.anatomy.vocabulary import final_modules, logits_of, residual_factor, word_embeddings
from interpret.errors import InputError, UnsupportedModelError

_LENGTH = 2
"""T: tokens of each text."""
_SHARED = 1
"""How many of them, at the beginning, are the same in both texts."""
_FULL = (torch.float32, torch.float64)


def check_logits(model: PreTrainedModel) -> None:
    """Check that logits computed from a model's states are the model's own, and that no token attends to later ones.

    Args:
        model: a causal LM, its base model (only its attention is checked), or a translation model.

    Raises:
        UnsupportedModelError: if a logit differs, or changes with a later token; the message gives both figures.
    """
    _raise(_agreement(model).logits)


def check_parts(model: PreTrainedModel) -> None:
    """Check that what attention and MLP add to the residual stream adds up to it, in every layer.

    Raises:
        UnsupportedModelError: if it does not, or the model's family is not supported; the message gives both figures.
    """
    anatomy_of(model)
    _raise(_agreement(model).parts)


def check_insides(model: PreTrainedModel) -> None:
    """Check the parts of layers, as ``check_parts``, and the modules inside: norms, heads and neurons.

    A family that is described without its parts has no modules inside.

    Raises:
        UnsupportedModelError: if something is not what the row of the family says; the message gives both figures.
    """
    check_parts(model)
    _raise(_agreement(model).insides)


def check_scores(model: PreTrainedModel) -> None:
    """Check what ``check_insides`` does, and that the heads attend by the queries and keys that the row names.

    Raises:
        UnsupportedModelError: if they do not; the message gives both figures.
    """
    check_insides(model)
    _raise(_agreement(model).scores)


def _raise(problem: str | None) -> None:
    if problem is not None:
        raise UnsupportedModelError(problem)


def check_evaluating(model: PreTrainedModel) -> None:
    """Check that a model and all its modules are in evaluation mode, or that training mode makes no difference.

    Raises:
        InputError: if two passes of the same text differ because of a module in training mode.
        UnsupportedModelError: if the model is hidden in a wrapper.
    """
    check_is_model(model)
    if model.training:
        raise InputError("the model is in training mode, in which dropout makes every run different; call model.eval()")
    training = [name for name, module in model.named_modules() if module.training]
    if training and not _repeats(model):
        dropouts = [name for name in training if "Dropout" in type(model.get_submodule(name)).__name__]
        raise InputError(
            f"the module {(dropouts or training)[0]!r} is in training mode, in which dropout makes every run "
            "different; call model.eval()"
        )


@torch.no_grad()
def _repeats(model: PreTrainedModel) -> bool:
    """Return whether two passes of the same texts give the same result."""
    ids = _two_texts(model)
    with without_own_hooks(), torch.random.fork_rng():
        return torch.equal(_own(model, ids), _own(model, ids))


# ---------------------------------------------------------------------------------------------- once per model


@dataclass(frozen=True)
class _Agreement:
    """The problems found, and what the model was made of at that time."""

    made_of: tuple[Any, ...]
    logits: str | None
    """Why logits from states are not the model's own; None if they are."""
    parts: str | None
    """Why the parts of layers do not add up; None if they do, or if the family is not supported."""
    insides: str | None = None
    """Why the modules inside are not those of the family's row; None also if the row does not name them."""
    scores: str | None = None
    """Why the heads do not attend by the queries and keys of the family's row."""


_KNOWN: WeakKeyDictionary[nn.Module, _Agreement] = WeakKeyDictionary()


def _agreement(model: PreTrainedModel) -> _Agreement:
    check_is_model(model)
    check_uncompiled(model)
    made_of = composition(model)
    found = _KNOWN.get(model)
    if found is None or found.made_of != made_of:
        found = _KNOWN[model] = _compared(model, made_of)
    return found


def composition(model: PreTrainedModel) -> tuple[Any, ...]:
    """Return what the result of a comparison depends on: modules, settings, the family's row, hooks on the model."""
    plain = (bool, int, float, str, type(None))
    settings = {
        name: value
        for name, value in vars(model.config).items()
        if isinstance(value, plain) and not name.startswith("_")
    }
    # Weak references, because the id of a module that is gone may be given to another one. Hooks inside the model take
    # part wherever their module is called; those on the whole model only in its own passes.
    modules = [ref(module) for module in model.modules()]
    changes = [foreign_changes(part) for part in (model, base_of(model))]
    return model.dtype, settings, FAMILIES.get(model.config.model_type), modules, changes


@torch.no_grad()
def _compared(model: PreTrainedModel, made_of: tuple[Any, ...]) -> _Agreement:
    ids, exact = _two_texts(model), all(parameter.dtype in _FULL for parameter in model.parameters())
    with without_own_hooks(), evaluating(model):
        if model.config.is_encoder_decoder:
            return _Agreement(made_of, _problem_of_translation(model, exact, ids), None)
        if not _caches(model):  # OpenAI GPT and XLM
            return _Agreement(made_of, f"{type(model).__name__}: only decoders with a KV cache are supported", None)
        anatomy = _anatomy_if_known(model)
        with _watching(model, anatomy) as seen:
            own = _own(model, ids)
            if ("states", -1) not in seen:  # OPT's causal LM calls the decoder of its base model directly
                base_of(model)(input_ids=ids, use_cache=False)
        if isinstance(seen.problem, str) or anatomy is None:
            parts = seen.problem
        else:
            parts = _problem_of_parts(model, exact, anatomy, seen)
        insides, scores = None, None
        causal = _unlike_before(model, exact, own) is None  # if not, the row of the family is not to blame
        if anatomy is not None and anatomy.family.parts is not None and parts is None and causal:
            insides = _problem_of_modules(model, exact, anatomy, seen, inside)
            scores = insides or _problem_of_modules(model, exact, anatomy, seen, attending)
        try:
            logits = _problem_of_logits(model, exact, anatomy, ids, own, seen)
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            logits = (
                f"{type(model).__name__} (model_type {model.config.model_type!r}): its logits cannot be computed from "
                f"word embeddings, its last state and its unembedding, as those of other models ({reason})"
            )
        return _Agreement(made_of, logits, parts, insides, scores)


def _caches(model: PreTrainedModel) -> bool:
    """Return whether a model has a KV cache, which can be turned off."""
    known = signature(base_of(model).forward).parameters
    return "use_cache" in known or any(one.kind is one.VAR_KEYWORD for one in known.values())


def _anatomy_if_known(model: PreTrainedModel) -> Anatomy | None:
    try:
        return anatomy_of(model)
    except UnsupportedModelError:
        return None


def _two_texts(model: PreTrainedModel) -> Tensor:
    """Return the ids of two texts, [2, T], without special tokens; they differ from column ``_SHARED`` on."""
    size, settings = model.config.vocab_size, vars(model.config)
    special = {value for name, value in settings.items() if name.endswith("token_id") and isinstance(value, int)}
    some = range(1, size, max(1, size // 50))
    usable = [token for token in some if token not in special] or list(range(size))
    chosen = [usable[index * len(usable) // (2 * _LENGTH)] for index in range(2 * _LENGTH)]
    rows = [chosen[:_LENGTH], [*chosen[:_SHARED], *chosen[_LENGTH : 2 * _LENGTH - _SHARED]]]
    return torch.tensor(rows, device=input_device(model))[:, : longest_text(model)]


def _own(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the model's own logits, [2, T, V]; of a model without unembedding, its states, [2, T, D]."""
    if model.config.is_encoder_decoder:
        source = ids[:1].expand_as(ids)
        return model(input_ids=source, decoder_input_ids=ids, use_cache=False, return_dict=True).logits
    if model.get_output_embeddings() is None:
        return base_of(model)(input_ids=ids, use_cache=False, return_dict=True)[0]
    return model(input_ids=ids, use_cache=False, return_dict=True).logits


# ------------------------------------------------------------------------------------------------ the recorded pass


class _Seen(dict[tuple[str, int], Tensor]):
    """The tensors of a pass, by name and layer; the states that are unembedded have layer -1."""

    layer: int = -1
    """The layer that is running: a module that several layers share is recorded for this one."""
    problem: str | None = None
    """Why the parts of the layers could not be recorded."""


@contextmanager
def _watching(model: PreTrainedModel, anatomy: Anatomy | None) -> Iterator[_Seen]:
    """Record what the model's base and the parts of its layers compute inside the ``with`` block."""
    seen = _Seen()
    with Changes() as change, change:

        def watch(name: str, layer: int, module: nn.Module, *, at_input: bool = False, first: bool = False) -> None:
            """Record a module's input or output, as it is before (``first``) or after other hooks have changed it."""

            def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                if name == "resid_pre":
                    seen.layer = layer
                if layer == seen.layer:
                    seen[name, layer] = layer_input(args, kwargs)

            def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                if layer == seen.layer:
                    seen[name, layer] = output if isinstance(output, Tensor) else output[0]
                if name == "resid_post":
                    seen.layer = -1

            if at_input:
                change.before(module, on_input, first=first)
            else:
                change.after(module, on_output, prepend=first)

        watch("states", -1, base_of(model))
        if anatomy is not None:
            for layer, block in enumerate(anatomy.layers):
                watch("resid_pre", layer, block, at_input=True)
                watch("written", layer, block, first=True)
            try:
                for layer, block in enumerate(anatomy.layers):
                    _watch_parts(anatomy, layer, block, watch)
            except AttributeError as error:
                seen.problem = f"{_row(model)} names a module that its layers do not have: {error}"
            for layer, block in enumerate(anatomy.layers):
                watch("resid_post", layer, block)  # the last hook of the layer
        yield seen


def _watch_parts(anatomy: Anatomy, layer: int, block: nn.Module, watch: Callable[..., None]) -> None:
    family = anatomy.family
    watch("attn_out", layer, block.get_submodule(family.attention_output))
    watch("mlp_out", layer, block.get_submodule(family.mlp_last))
    normed = family.mlp_norm and anatomy.block == "sequential"
    middle = block.get_submodule(family.mlp_norm if normed else family.mlp_first)
    if _is_in_one_place(block, middle):
        watch("resid_mid", layer, middle, at_input=True)
    if family.parts is not None:
        for name, path in inputs_inside(family, family.parts).items():
            watch(name, layer, block.get_submodule(path), at_input=True)
        for name, path in outputs_inside(family, family.parts).items():
            watch(name, layer, block.get_submodule(path))


def _is_in_one_place(block: nn.Module, module: nn.Module) -> bool:
    """Return whether a layer has a module once; one in several places, such as an identity, gets other tensors too."""
    return sum(other is module for _, other in block.named_modules(remove_duplicate=False)) == 1


# -------------------------------------------------------------------------------------------------- the comparisons


def _problem_of_logits(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy | None, ids: Tensor, own: Tensor, seen: _Seen
) -> str | None:
    unlike = _unlike_before(model, exact, own)
    if unlike is not None:
        return unlike
    embeddings = word_embeddings(model, ids)
    if anatomy is not None:
        what, ours, theirs = "the first layer's input", first_layer_input(anatomy, embeddings, 0), seen["resid_pre", 0]
    else:
        what, theirs = "the last state", seen["states", -1]
        ours = base_of(model)(inputs_embeds=embeddings, use_cache=False)[0]
    figures = _apart(exact, ours, theirs)
    if figures is not None:
        return (
            f"{type(model).__name__}: {what} is {figures[0]:.4g} for word embeddings and {figures[1]:.4g} for the ids "
            "of the same tokens, so embeddings cannot stand for tokens; the model scales or changes them when it "
            "looks them up"
        )
    if model.get_output_embeddings() is None:
        return None
    # One token is enough, because every token gets the same unembedding, and one is cheap.
    states, own = seen["states", -1][:1, -1], own[:1, -1]
    if anatomy is not None:
        unembedded = seen["resid_post", len(anatomy.layers) - 1][:1, -1]
        for module in final_modules(anatomy):
            unembedded = module(unembedded)
        if _apart(exact, unembedded, states) is not None:
            return _other_logits(model, _apart(exact, logits_of(model, unembedded), own) or (nan, nan))
    figures = _apart(exact, logits_of(model, states), own)
    return None if figures is None else _other_logits(model, figures)


def _problem_of_translation(model: PreTrainedModel, exact: bool, ids: Tensor) -> str | None:
    own = _own(model, ids)
    source, text = (word_embeddings(model, rows) for rows in (ids[:1].expand_as(ids), ids))
    figures = _apart(exact, logits_of(model, decode_translation(model, source, text)[0]), own)
    return _unlike_before(model, exact, own) or (None if figures is None else _other_logits(model, figures))


def _other_logits(model: PreTrainedModel, figures: tuple[float, float]) -> str:
    settings = {name: value for name, value in vars(model.config).items() if "logit" in name and value not in (None, 1)}
    said = ", ".join(f"{name}={value}" for name, value in settings.items())
    known = FAMILIES.get(model.config.model_type)
    cause = "between the two, it changes states or logits in a way that is not supported here"
    if said:
        cause = f"its configuration has {said}"
    if known is not None:
        cause += f"; {_row(model)} has to describe this (logit_scale, logit_divisor, final_softcap, final)"
    return (
        f"{type(model).__name__} (model_type {model.config.model_type!r}): unembedding its last state gives a logit of "
        f"{figures[0]:.4g}, where the model's own is {figures[1]:.4g}; {cause}"
    )


def _unlike_before(model: PreTrainedModel, exact: bool, own: Tensor) -> str | None:
    """Return a problem if the two texts differ at tokens before their first difference."""
    one, other = own[:, :_SHARED]
    figures = _apart(exact, one, other, tolerance=1e-4)
    if figures is None:
        return None
    settings = [f"{name}={value}" for name, value in vars(model.config).items() if "bidirectional" in name and value]
    if not settings and model.config.model_type not in FAMILIES and not getattr(model.config, "is_decoder", True):
        settings = ["is_decoder=False"]
    cause = f" (its configuration has {', '.join(settings)})" if settings else ""
    return (
        f"{type(model).__name__}: tokens attend to later tokens{cause}: a prediction changes from {figures[1]:.4g} to "
        f"{figures[0]:.4g} when only a later token changes. Only models with causal attention are supported"
    )


def _problem_of_parts(model: PreTrainedModel, exact: bool, anatomy: Anatomy, seen: _Seen) -> str | None:
    for layer, block in enumerate(anatomy.layers):
        size = list(seen["resid_pre", layer].shape)
        for name in ("attn_out", "mlp_out", "resid_mid"):
            value = seen.get((name, layer))
            if name == "resid_mid" and value is None:
                continue
            if value is None or value.numel() != seen["resid_pre", layer].numel():
                given = "is not computed" if value is None else f"has shape {list(value.shape)}"
                return (
                    f"{type(model).__name__}: in layer {layer}, {name} {given}, where the residual stream has shape "
                    f"{size}; {_row(model)} names the wrong module"
                )
        for what, total, shares, expected in _sums(anatomy, layer, block, seen):
            figures = _apart(exact, total, expected, size=shares)
            if figures is not None:
                cause = f"{_row(model)} has to name the modules that write them, and residual_scale"
                return (
                    f"{type(model).__name__}: in layer {layer}, {what} is {figures[0]:.4g}, where the model has "
                    f"{figures[1]:.4g}; {cause}{_scales(model)}"
                )
    return None


def _paths(anatomy: Anatomy) -> dict[str, str]:
    """Return the paths of the modules of a layer whose inputs or outputs are recorded for a comparison, by name."""
    return inputs_inside(anatomy.family, anatomy.parts) | outputs_inside(anatomy.family, anatomy.parts)


def _device_of(block: nn.Module) -> torch.device:
    return next((parameter.device for parameter in block.parameters()), torch.device("cpu"))


def _compared_modules(anatomy: Anatomy, block: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of a layer whose inputs or outputs are compared."""
    for path in {anatomy.family.mlp_norm, *_paths(anatomy).values()}:
        with suppress(AttributeError):  # a row that names a module that does not exist is refused with its own message
            if path:
                yield block.get_submodule(path)


def _problem_of_modules(
    model: PreTrainedModel, exact: bool, anatomy: Anatomy, seen: _Seen, compared: Callable[..., Iterator[Comparison]]
) -> str | None:
    """Return a problem with the modules that the parts of the family's row name."""
    for layer, block in enumerate(anatomy.layers):
        if any(foreign_changes(part) for part in block.modules()):
            continue  # a hook between two modules changes what one gets from the other
        if not all(_is_in_one_place(block, part) for part in _compared_modules(anatomy, block)):
            continue
        device = _device_of(block)
        if device.type == "meta":  # offloaded weights are only there while their module is called
            continue
        recorded = {name: value.to(device) for (name, at), value in seen.items() if at == layer}
        if uncalled := [path for name, path in _paths(anatomy).items() if name not in recorded]:
            return (
                f"{type(model).__name__} does not call the module {uncalled[0]!r} of layer {layer}, which "
                f"{_row(model)} names; was it loaded with pretraining_tp above 1?"
            )
        try:
            for what, named, ours, theirs in compared(anatomy, layer, block, recorded):
                figures = _apart(exact, ours.reshape(theirs.shape), theirs)
                if figures is not None:
                    return (
                        f"{type(model).__name__} (model_type {model.config.model_type!r}): in layer {layer}, {what} is "
                        f"{figures[0]:.4g}, where the model has {figures[1]:.4g}; the row of its family names the "
                        f"wrong parts ({named})"
                    )
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return (
                f"{type(model).__name__} (model_type {model.config.model_type!r}): the row of its family names the "
                f"wrong parts, which do not fit together in layer {layer} ({reason})"
            )
    return None


def _sums(anatomy: Anatomy, layer: int, block: nn.Module, seen: _Seen) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield each sum of a layer: its name, its value, what is added, and the value the model has, [2, T, D] each."""
    expected = seen["written", layer]
    before = seen["resid_pre", layer].to(expected)  # a layer's input may come from another device
    factor = residual_factor(anatomy)
    attention, mlp = (seen[name, layer].reshape(before.shape).to(before) * factor for name in ("attn_out", "mlp_out"))
    if anatomy.block == "parallel":
        yield "resid_pre + attn_out + mlp_out", before + attention + mlp, attention + mlp, expected
        return
    if ("resid_mid", layer) not in seen:
        if anatomy.block == "sequential":
            yield "resid_pre + attn_out + mlp_out", before + attention + mlp, attention + mlp, expected
        return
    middle = seen["resid_mid", layer].reshape(before.shape).to(expected)
    first, second = before + attention, middle + mlp
    if anatomy.block == "post_norm":  # a norm follows each sum
        if anatomy.family.parts is not None:
            first = block.get_submodule(anatomy.family.parts.attention_norm)(first)
        else:
            first = middle
        second = block.get_submodule(anatomy.family.mlp_norm)(second)
    yield "resid_pre + attn_out", first, attention, middle
    yield "resid_mid + mlp_out", second, mlp, expected


def _apart(
    exact: bool, ours: Tensor, own: Tensor, *, tolerance: float = 1e-3, size: Tensor | None = None
) -> tuple[float, float] | None:
    """Return the entries of two tensors that differ most, ours first; None if the tensors agree.

    Args:
        exact: whether they have to agree exactly; two ways to compute the same in low precision differ by larger
            rounding errors.
        ours: a tensor computed here.
        own: the same tensor, computed by the model.
        tolerance: the allowed difference in full precision, relative to the spread of ``own`` or the size of ``size``.
        size: what ``ours`` adds to larger numbers, if the difference is to be compared with that.
    """
    if torch.equal(ours.to(own), own):
        return None
    tolerance, rounding = (tolerance, 1e-5) if exact else (0.05, 0.02)
    ours, own = (part.detach().cpu().double() for part in (ours, own))
    same = (ours == own) | (ours.isnan() & own.isnan())
    apart = (ours - own).abs().nan_to_num(nan=torch.inf).masked_fill(same, 0.0)
    sound = own.masked_fill(~own.isfinite(), 0.0)
    allowed = tolerance * _norm(sound - sound.mean(-1, keepdim=True))
    if size is not None:
        allowed = tolerance * _norm(size.cpu().double()) + rounding * _norm(own)
    if not apart.norm() > allowed:
        return None
    most = int(apart.argmax())
    return float(ours.flatten()[most]), float(own.flatten()[most])


def _norm(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0).norm()


def _row(model: PreTrainedModel) -> str:
    return f"the row of the family {model.config.model_type!r}"


def _scales(model: PreTrainedModel) -> str:
    """Name the settings of a model that look like factors on the residual stream."""
    names = [name for name in vars(model.config) if "residual" in name or name.endswith("multiplier")]
    said = ", ".join(f"{name}={getattr(model.config, name)}" for name in names)
    return f" (its configuration has {said})" if said else ""
