"""Named activations of a run: the residual stream around each layer, and the two halves of the layer.

====================  ==============================================================  =========
name (k = layer)      what it holds                                                   shape
====================  ==============================================================  =========
``resid_pre.k``       input of layer k                                                [B, T, D]
``attn_out.k``        what its attention adds to the stream                           [B, T, D]
``resid_mid.k``       residual stream to which the MLP's output is added              [B, T, D]
``mlp_in.k``          input of its MLP, after the norm                                [B, T, D]
``mlp_out.k``         what its MLP adds to the stream                                 [B, T, D]
``resid_post.k``      output of layer k; for the last layer, the state before the     [B, T, D]
                      final norm
====================  ==============================================================  =========

``resid_mid + mlp_out == resid_post``; in parallel layers (GPT-J, GPT-NeoX) ``resid_mid`` is
``resid_pre + attn_out``. Only post-norm layers (OPT-350m) norm that sum before they pass it on.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from interpret.anatomy import Anatomy, anatomy_of, keeping_activations, layer_input
from interpret.anatomy.passes import only_in_this_thread
from interpret.errors import InputError, unknown

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")


@contextmanager
def record(model: PreTrainedModel, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Record activations of the forward passes this thread makes inside the ``with`` block.

    Args:
        model: a causal LM of a known family, or its base model.
        names: which activations, such as ``"mlp_out.3"``; the table stands at the top of this module.

    Yields:
        A dict that holds, under each name, the tensor of the latest pass, as the model computed it: not
        detached, not copied. ``resid_pre`` of the same layers comes along. Gradient checkpointing is off.

    Raises:
        InputError: for a name that does not exist in this model.
        UnsupportedModelError: for a model of no known family.

    >>> import torch
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    >>> with record(model, ["resid_post.1"]) as seen:
    ...     _ = model(torch.tensor([[3, 1, 4]]))
    >>> seen["resid_post.1"].shape
    torch.Size([1, 3, 8])
    """
    anatomy = anatomy_of(model)
    parsed = [_parse(name, len(anatomy.layers)) for name in names]
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(keeping_activations(anatomy.trunk))
        for layer in sorted({layer for _, layer in parsed}):
            sites = {site for site, of in parsed if of == layer}
            for handle in _hook_layer(anatomy, layer, sites, seen):
                stack.callback(handle.remove)
        yield seen


def _parse(name: str, n_layers: int) -> tuple[str, int]:
    """``"mlp_out.3"`` -> ``("mlp_out", 3)``."""
    site, _, layer = name.partition(".")
    if site not in SITES:
        raise InputError(unknown("activation", site, SITES))
    if layer not in map(str, range(n_layers)):
        raise InputError(f"activation {name!r}: give a layer from 0 to {n_layers - 1}, as in '{site}.0'")
    return site, int(layer)


def _hook_layer(anatomy: Anatomy, layer: int, sites: set[str], seen: dict[str, Tensor]) -> Iterator[RemovableHandle]:
    """Register the hooks that record ``sites`` of one layer into ``seen``."""
    block, family = anatomy.layers[layer], anatomy.family

    def keep(site: str) -> Callable[[Tensor], None]:
        return lambda value: seen.__setitem__(f"{site}.{layer}", value)

    def keep_rows(site: str) -> Callable[[Tensor], None]:
        # OPT's MLP sees [B * T, D]: give its tensors the shape of the layer's input again. Others stay the very
        # tensors of the graph, which a view is not.
        shape = f"resid_pre.{layer}"
        return lambda value: keep(site)(value if value.dim() == 3 else value.view(seen[shape].shape))

    def keep_sum(value: Tensor) -> None:
        keep("resid_mid")(seen[f"resid_pre.{layer}"] + value)

    yield _on_input(block, keep("resid_pre"))
    if "resid_mid" in sites and anatomy.block == "parallel":
        yield _on_output(block.get_submodule(family.attention_output), keep_sum)
    elif "resid_mid" in sites:
        at = family.mlp_norm if family.mlp_norm and anatomy.block == "sequential" else family.mlp_first
        yield _on_input(block.get_submodule(at), keep_rows("resid_mid"))
    if "attn_out" in sites:
        yield _on_output(block.get_submodule(family.attention_output), keep("attn_out"))
    if "mlp_in" in sites:
        yield _on_input(block.get_submodule(family.mlp_first), keep_rows("mlp_in"))
    if "mlp_out" in sites:
        yield _on_output(block.get_submodule(family.mlp_last), keep_rows("mlp_out"))
    if "resid_post" in sites:
        yield _on_output(block, keep("resid_post"))


def _on_input(module: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(layer_input(args, kwargs))

    return module.register_forward_pre_hook(only_in_this_thread(hook), with_kwargs=True)


def _on_output(module: nn.Module, keep: Callable[[Tensor], None]) -> RemovableHandle:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    return module.register_forward_hook(only_in_this_thread(hook))
