"""Rewrites what enters a module of a layer, for the time of a ``with`` block: neurons and heads are edited here.

Unlike ``interpret.surgery``, which edits the residual stream between layers, this edits inside a layer, where the
neurons enter the MLP's last projection and the heads' outputs enter the attention's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import Signature, signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of, first_column, keeping_activations, layer_input, past_length, with_layer_input
from interpret.anatomy.passes import only_in_this_thread
from interpret.errors import InputError

Edit = Callable[[Tensor, int], Tensor]
"""Takes what enters a module, [B, T, width], and the column of the padded batch its first token stands in; returns
what shall enter, a new tensor of the same shape."""


@dataclass
class _Pass:
    """Which columns the pass under way computes."""

    trunk_signature: Signature
    start: int = 0
    n_rows: int = 0
    """B: OPT's MLP sees [B * T, width]."""

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self.trunk_signature.bind(*args, **kwargs).arguments
        tokens = arguments.get("input_ids")
        tokens = arguments["inputs_embeds"] if tokens is None else tokens
        self.n_rows = len(tokens)
        past = past_length(arguments.get("past_key_values"))
        self.start = first_column(arguments, tokens.shape[1], past)

    def rewrite(self, edit: Edit) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            value = layer_input(args, kwargs)
            rows = value.view(self.n_rows, -1, value.shape[-1])  # [B, T, width]
            return with_layer_input(args, kwargs, edit(rows, self.start).view_as(value))

        return hook


@contextmanager
def editing(model: PreTrainedModel, edits: Mapping[tuple[int, str], Edit]) -> Iterator[None]:
    """Apply edits to every pass the calling thread makes in the block; then leave no trace.

    Args:
        model: a causal LM of a known family, or its base model.
        edits: layer and path of a module below it -> what is done to the module's input.
    """
    anatomy = anatomy_of(model)
    modules = [(anatomy.layers[layer].get_submodule(path), edit) for (layer, path), edit in edits.items()]
    under_way = _Pass(signature(anatomy.trunk.forward))
    with ExitStack() as stack:
        stack.enter_context(keeping_activations(anatomy.trunk))
        enter = only_in_this_thread(under_way.enter)
        stack.callback(anatomy.trunk.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for module, edit in modules:
            hook = only_in_this_thread(under_way.rewrite(edit))
            # Before the hooks of others, so that those that read the input read what it really is.
            stack.callback(module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True).remove)
        yield


def check_index(kind: str, index: int, count: int, of: str = "this model") -> None:
    """Refuse a layer, head or neuron that does not exist.

    Raises:
        InputError: if ``index`` is not from 0 to ``count - 1``.
    """
    if not 0 <= index < count:
        raise InputError(f"{kind} {index} does not exist; {of} has {kind}s 0 to {count - 1}")
