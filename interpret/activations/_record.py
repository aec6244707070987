"""Names of the activations in a forward pass, and the hooks that record them.

Shapes: B prompts, T tokens, D hidden width, H heads, G key-value heads, W width of a head, F neurons, V vocabulary.

==================  ==================================================================  ================
name (k = layer)    what it holds                                                       shape
==================  ==================================================================  ================
``resid_pre.k``     input of layer k                                                    [B, T, D]
``attn_in.k``       input of the attention, after its norm                              [B, T, D]
``q.k``             queries after the projection, before scaling and rotary embedding   [B, T, H, W]
``k.k``             keys after the projection, before rotary embedding                  [B, T, G, W]
``v.k``             values                                                              [B, T, G, W]
``heads.k``         output of each head, before the output projection                   [B, T, H, W]
``attn_out.k``      what the attention adds to the residual stream                      [B, T, D]
``mixer_out.k``     what a layer without attention adds in its place (Mamba, LFM2)      [B, T, D]
``resid_mid.k``     residual stream to which the MLP's output is added                  [B, T, D]
``mlp_in.k``        input of the MLP, after its norm                                    [B, T, D]
``neurons.k``       values of the MLP's neurons: input of its down projection           [B, T, F]
``mlp_out.k``       what the MLP adds to the residual stream                            [B, T, D]
``resid_post.k``    output of layer k; for the last layer, the state before the final   [B, T, D]
                    norm
``logits``          output of the unembedding (language-model head)                     [B, T, V]
==================  ==================================================================  ================

``resid_mid + mlp_out == resid_post``, and without an MLP ``resid_pre + mixer_out == resid_post``; in parallel layers
(GPT-J, GPT-NeoX) ``resid_mid`` is ``resid_pre + attn_out``. In post-norm layers (OPT-350m), a norm is applied to each
of these sums.
``resid_post`` of a layer is ``resid_pre`` of the next. The neurons of a mixture of experts are those of all experts, in
order, and last those of shared experts; their values include the routing weights, and are 0 in experts that were not
picked for a token (``interpret.anatomy.experts``).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    check_insides,
    check_parts,
    check_scores,
    has_neurons,
    keeping_activations,
    key_heads,
    layer_input,
    neuron_numbers,
    residual_factor,
    text_config,
    unfused,
    unwrapping,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.neurons import hook_neurons
from interpret.errors import InputError, unknown

Site = Literal[
    "resid_pre", "attn_in", "q", "k", "v", "heads", "attn_out", "mixer_out",
    "resid_mid", "mlp_in", "neurons", "mlp_out", "resid_post",
]  # fmt: skip
"""Name of an activation within a layer; see the table above."""
SITES: tuple[Site, ...] = get_args(Site)
"""All sites, in the order in which a layer computes them."""
LOGITS = "logits"
_OF_PARTS = ("q", "k", "v", "heads")
"""The sites that only a family with ``parts`` has."""
_CHECKS: dict[Callable[[PreTrainedModel], None], set[str]] = {
    check_parts: {"attn_out", "mixer_out", "resid_mid", "mlp_out"},
    check_insides: {"attn_in", "heads", "mlp_in", "neurons", "v"},
    check_scores: {"q", "k"},
}
"""The check that each site requires; ``resid_pre`` and ``resid_post`` are inputs and outputs of layers in any case."""


@unwrapping
@contextmanager
def record(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record activations of the forward passes this thread makes inside the ``with`` block.

    Args:
        model: a causal LM of a supported family, or its base model.
        names: activations to record, such as ``"mlp_out.3"``; ``interpret.activations.SITES`` lists the sites.

    Yields:
        A dict from each name to the tensor of the latest forward pass, neither detached nor copied (``attn_out`` and
        ``mlp_out`` of Granite are multiples of module outputs). It also holds ``resid_pre`` of every recorded layer.
        Gradient checkpointing is off inside the block.

    Raises:
        InputError: if a name does not exist in this model.
        UnsupportedModelError: if the model's family is unknown, its description lacks a module that is needed, or
            the recorded parts of the residual stream would not add up to it.

    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> with record(model, ["resid_post.1"]) as seen:
    ...     _ = model(torch.tensor([[3, 1, 4]]))
    >>> seen["resid_post.1"].shape
    torch.Size([1, 3, 8])
    """
    anatomy = anatomy_of(model)
    wanted: dict[int, set[str]] = {}
    for site, layer in (_parse(name, len(anatomy.layers)) for name in names):
        _check_has(anatomy, site, layer)
        wanted.setdefault(layer, set()).add(site)
    for check, sites in _CHECKS.items():
        if any(sites & here for here in wanted.values()):
            check(model)
    seen: dict[str, Tensor] = {}
    with keeping_activations(anatomy.trunk), Changes() as change, change:
        for layer in sorted(wanted):
            _hook_layer(change, anatomy, text_config(model), layer, wanted[layer], seen)
        yield seen


def all_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of all activations of a model, layer by layer, in the order of computation.

    A model without parts (``Family.parts``) has no heads, queries, keys and values; without the parts of its MLPs or
    experts, it has no neurons. A layer without attention, or without an MLP, has none of their activations.

    Raises:
        UnsupportedModelError: if the model's family is unknown.
    """
    anatomy = anatomy_of(model)
    layers = range(len(anatomy.layers))
    names = tuple(f"{site}.{layer}" for layer in layers for site in SITES if _has(anatomy, site, layer))
    return names if model.get_output_embeddings() is None else (*names, LOGITS)


def sites_of(anatomy: Anatomy) -> list[Site]:
    """Return the sites that a model has, in any of its layers."""
    return [site for site in SITES if any(_has(anatomy, site, layer) for layer in range(len(anatomy.layers)))]


def _has(anatomy: Anatomy, site: str, layer: int) -> bool:
    """Return whether a layer has a site."""
    if site in _OF_PARTS:
        return anatomy.family.parts is not None
    if site == "neurons":
        return has_neurons(anatomy, layer)
    return anatomy.has(layer, site)


def _check_has(anatomy: Anatomy, site: str, layer: int) -> None:
    """Check that a layer has a site.

    Raises:
        UnsupportedModelError: if it does not; the message says why.
    """
    if _has(anatomy, site, layer):
        return
    if site == "neurons":
        neuron_numbers(anatomy, layer)
    _ = anatomy.parts if site in _OF_PARTS else anatomy.module(layer, site)


def select_names(model: PreTrainedModel, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a model's activations that match any of the patterns, in the order of computation.

    Args:
        model: a causal LM of a supported family, or its base model.
        patterns: names such as ``"mlp_out.3"``, or patterns with the wildcards ``*``, ``?`` and ``[seq]`` of file
            names, such as ``"resid_*"`` or ``"q.1?"``.

    Raises:
        InputError: if a pattern matches no name, or there is no pattern.
        UnsupportedModelError: if the model's family is unknown, or its layers do not have the site.
    """
    names, anatomy = all_names(model), anatomy_of(model)
    wanted: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            site = pattern.partition(".")[0]
            if site in SITES and site not in sites_of(anatomy):
                _check_has(anatomy, site, 0)
            raise InputError(_no_such(pattern, names))
        wanted |= fitting
    if not wanted:
        raise InputError('names is empty: name at least one activation, such as "resid_post.0", or "*" for all')
    return tuple(name for name in names if name in wanted)


def _no_such(pattern: str, names: Sequence[str]) -> str:
    site = pattern.partition(".")[0]
    if site not in (*SITES, LOGITS) and not set("*?[") & set(site):
        return unknown("activation", site, (*SITES, LOGITS))
    last = max(int(name.partition(".")[2]) for name in names if name != LOGITS)
    head = ", or logits" if LOGITS in names else "; a base model has no logits"
    return (
        f"this model has no activation {pattern!r}: "
        f"a name is a site and a layer from 0 to {last}, such as 'mlp_out.0'{head}"
    )


def _parse(name: str, n_layers: int) -> tuple[str, int]:
    """``"mlp_out.3"`` -> ``("mlp_out", 3)``."""
    site, _, layer = name.partition(".")
    if site not in SITES:
        raise InputError(unknown("activation", site, SITES))
    if layer not in map(str, range(n_layers)):
        raise InputError(f"activation {name!r}: give a layer from 0 to {n_layers - 1}, as in '{site}.0'")
    return site, int(layer)


Keep = Callable[[Tensor], None]
"""Is called with a tensor when the model computes it."""


def _hook_layer(
    change: Changes, anatomy: Anatomy, config: Any, layer: int, sites: set[str], seen: dict[str, Tensor]
) -> None:
    """Register hooks that record ``sites`` of one layer in ``seen``, and always its input, ``resid_pre``."""
    block, factor = anatomy.layers[layer], residual_factor(anatomy)

    def keep(site: str, value: Tensor) -> None:
        seen[f"{site}.{layer}"] = value

    def keep_rows(site: str, value: Tensor) -> None:
        # OPT's MLP gets [B * T, width]. Elsewhere no view is made, so that the tensor itself is part of the graph.
        keep(site, value if value.dim() == 3 else value.view(*seen[f"resid_pre.{layer}"].shape[:2], -1))

    def keep_added(site: str, value: Tensor) -> None:
        keep_rows(site, value if factor == 1 else value * factor)

    def keep_mid(value: Tensor) -> None:
        keep("resid_mid", seen[f"resid_pre.{layer}"] + (value if factor == 1 else value * factor))

    _on_input(change, block, partial(keep, "resid_pre"))
    _hook_attention(change, anatomy, config, layer, sites, keep)
    if "resid_mid" in sites and anatomy.block == "parallel":
        _on_output(change, anatomy.module(layer, "attn_out"), keep_mid)
    elif "resid_mid" in sites:
        _on_input(change, anatomy.module(layer, "resid_mid"), partial(keep_rows, "resid_mid"))
    if "mlp_in" in sites:
        _on_input(change, anatomy.module(layer, "mlp_in"), partial(keep_rows, "mlp_in"))
    if "neurons" in sites:
        hook_neurons(change, anatomy, layer, partial(keep_rows, "neurons"))
    for site in sites & {"attn_out", "mixer_out", "mlp_out"}:
        copy = site == "mlp_out" and anatomy.family.overwrites_mlp and anatomy.block == "parallel"
        _on_output(change, anatomy.module(layer, site), partial(keep_added, site), copy=copy)
    if "resid_post" in sites:
        _on_output(change, block, partial(keep, "resid_post"))


def _hook_attention(
    change: Changes, anatomy: Anatomy, config: Any, layer: int, sites: set[str], keep: Callable[[str, Tensor], None]
) -> None:
    """Register the hooks on the attention of one layer."""
    block = anatomy.layers[layer]
    if "attn_in" in sites:
        _on_input(change, anatomy.module(layer, "attn_in"), partial(keep, "attn_in"))
    if sites & {"q", "k", "v"}:
        _hook_projections(change, anatomy, config, layer, sites, keep)
    if "heads" in sites:
        n_heads = config.num_attention_heads
        by_head: Keep = lambda value: keep("heads", value.unflatten(-1, (n_heads, -1)))  # noqa: E731
        _on_input(change, block.get_submodule(anatomy.parts.attention_out), by_head)


def _hook_projections(
    change: Changes, anatomy: Anatomy, config: Any, layer: int, sites: set[str], keep: Callable[[str, Tensor], None]
) -> None:
    """Register the hooks on the query, key and value projections: one each, or one if they are fused."""
    block, parts = anatomy.layers[layer], anatomy.parts
    n_heads, n_key_heads = config.num_attention_heads, key_heads(config)
    counts: Mapping[str, int] = {"q": n_heads, "k": n_key_heads, "v": n_key_heads}

    def keep_fused(value: Tensor) -> None:
        for site, part in zip(counts, unfused(value, parts.fused, n_heads, n_key_heads), strict=True):
            if site in sites:
                keep(site, part)

    def keep_one(site: str, value: Tensor) -> None:
        keep(site, value.unflatten(-1, (counts[site], -1)))

    if parts.fused:
        _on_output(change, block.get_submodule(parts.projections[0]), keep_fused)
        return
    for site, path in zip(counts, parts.projections, strict=True):
        if site in sites:
            _on_output(change, block.get_submodule(path), partial(keep_one, site))


def _on_input(change: Changes, module: nn.Module, keep: Keep) -> None:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(layer_input(args, kwargs))

    change.before(module, hook)


def _on_output(change: Changes, module: nn.Module, keep: Keep, *, copy: bool = False) -> None:
    """Keep what a module returns; the model goes on with a copy if it would change it in place."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        keep(output[0] if isinstance(output, tuple) else output)
        return output.clone() if copy else None

    change.after(module, hook)
