"""Which activations a cache can hold, by which names, and the hooks that see them.

The names of ``interpret.activations``, and what is inside the two halves of a layer. Shapes: B prompts, T tokens,
D hidden width, H heads, G key-value heads, W width of a head, F neurons, V vocabulary.

==================  ==================================================================  ================
name (k = layer)    what it holds                                                       shape
==================  ==================================================================  ================
``resid_pre.k``     input of layer k                                                    [B, T, D]
``attn_in.k``       input of its attention, after the norm                              [B, T, D]
``q.k``             queries, as projected: not scaled, not rotated to their positions   [B, T, H, W]
``k.k``             keys, as projected                                                  [B, T, G, W]
``v.k``             values                                                              [B, T, G, W]
``heads.k``         output of each head, before the output projection                   [B, T, H, W]
``attn_out.k``      output of the attention                                             [B, T, D]
``resid_mid.k``     residual stream to which the MLP's output is added                  [B, T, D]
``mlp_in.k``        input of its MLP, after the norm                                    [B, T, D]
``neurons.k``       what the MLP's neurons say: the input of its down projection        [B, T, F]
``mlp_out.k``       output of its MLP                                                   [B, T, D]
``resid_post.k``    output of layer k                                                   [B, T, D]
``logits``          of the model's own head                                             [B, T, V]
==================  ==================================================================  ================
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from interpret.activations import _record
from interpret.activations._record import record
from interpret.anatomy import Anatomy, Fused, anatomy_of, key_heads, layer_input
from interpret.anatomy.passes import only_in_this_thread
from interpret.errors import InputError, unknown

SITES = (
    "resid_pre", "attn_in", "q", "k", "v", "heads", "attn_out",
    "resid_mid", "mlp_in", "neurons", "mlp_out", "resid_post",
)  # fmt: skip
LOGITS = "logits"


def all_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return every name a model has, layer by layer, each in the order in which it computes.

    Raises:
        UnsupportedModelError: for a model of no known family.
    """
    layers = range(len(anatomy_of(model).layers))
    names = tuple(f"{site}.{layer}" for layer in layers for site in SITES)
    return names if model.get_output_embeddings() is None else (*names, LOGITS)


def select_names(model: PreTrainedModel, patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names that any of some patterns fits, in the model's order.

    Args:
        model: whose names are meant.
        patterns: names such as ``"mlp_out.3"``, or patterns in which ``*``, ``?`` and ``[seq]`` stand for
            characters, as in file names: ``"resid_*"``, ``"q.1?"``.

    Raises:
        InputError: for a pattern that fits no name.
        UnsupportedModelError: for a model of no known family.
    """
    names = all_names(model)
    wanted: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
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
    head = ", and logits" if LOGITS in names else "; without a head it has no logits"
    return (
        f"no activation of this model is called {pattern!r}: "
        f"names are a site and a layer from 0 to {last}, as in 'mlp_out.0'{head}"
    )


@contextmanager
def recording(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record activations of the forward passes this thread makes inside the ``with`` block.

    Args:
        model: a causal LM of a known family, or its base model.
        names: as ``select_names`` returns them; ``logits`` is left to who runs the model.

    Yields:
        A dict that holds, under each name, the tensor of the latest pass. ``resid_pre`` of the same layers comes along.
    """
    anatomy = anatomy_of(model)
    sites: dict[int, set[str]] = {}
    for site, _, of_layer in (name.partition(".") for name in names if name != LOGITS):
        sites.setdefault(int(of_layer), {"resid_pre"}).add(site)
    plain = [f"{site}.{layer}" for layer, wanted in sites.items() for site in wanted if site in _record.SITES]
    with ExitStack() as stack:
        seen = stack.enter_context(record(model, plain))
        for layer, wanted in sites.items():
            for handle in _hook_layer(anatomy, model.config, layer, wanted, seen):
                stack.callback(handle.remove)
        yield seen


def _hook_layer(
    anatomy: Anatomy, config: Any, layer: int, sites: set[str], seen: dict[str, Tensor]
) -> Iterator[RemovableHandle]:
    """Register the hooks that record what is inside the halves of one layer into ``seen``."""
    block, parts = anatomy.layers[layer], anatomy.parts
    n_heads = config.num_attention_heads
    n_key_heads = key_heads(config)

    def keep(site: str) -> Callable[[Tensor], None]:
        return lambda value: seen.__setitem__(f"{site}.{layer}", value)

    def keep_heads(site: str, n: int) -> Callable[[Tensor], None]:
        return lambda value: keep(site)(value.unflatten(-1, (n, -1)))

    def keep_rows(site: str) -> Callable[[Tensor], None]:
        # OPT's MLP sees [B * T, F].
        return lambda value: keep(site)(value.view(*seen[f"resid_pre.{layer}"].shape[:2], -1))

    def keep_fused(value: Tensor) -> None:
        for site, part in zip("qkv", unfused(value, parts.fused, n_heads, n_key_heads), strict=True):
            if site in sites:
                keep(site)(part)

    if "attn_in" in sites:
        yield _on_input(block.get_submodule(anatomy.family.attention), keep("attn_in"))
    if parts.fused and sites & set("qkv"):
        yield _on_output(block.get_submodule(parts.projections[0]), keep_fused)
    elif not parts.fused:
        for site, path, n in zip("qkv", parts.projections, (n_heads, n_key_heads, n_key_heads), strict=True):
            if site in sites:
                yield _on_output(block.get_submodule(path), keep_heads(site, n))
    if "heads" in sites:
        yield _on_input(block.get_submodule(parts.attention_out), keep_heads("heads", n_heads))
    if "neurons" in sites:
        yield _on_input(block.get_submodule(parts.down), keep_rows("neurons"))


def unfused(value: Tensor, fused: Fused, n_heads: int, n_key_heads: int) -> tuple[Tensor, ...]:
    """Part what one projection gives, [..., (H + 2 G) * W], into queries [..., H, W], keys and values [..., G, W]."""
    if fused == "blocks":
        counts = (n_heads, n_key_heads, n_key_heads)
        return value.unflatten(-1, (sum(counts), -1)).split(counts, dim=-2)
    return value.unflatten(-1, (n_heads, 3, -1)).unbind(dim=-2)


def _on_input(module: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(layer_input(args, kwargs))

    return module.register_forward_pre_hook(only_in_this_thread(hook), with_kwargs=True)


def _on_output(module: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        keep(output)

    return module.register_forward_hook(only_in_this_thread(hook))
