"""Where things are in a model: one table row for each family, and the call signatures of its layers.

This is the only place that knows the module names of a family. To describe a new family, add a row to
``FAMILIES``; docs/architecture.md says how to find its values.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from interpret.errors import InputError, UnsupportedModelError

Block = Literal["sequential", "parallel", "post_norm"]
"""How a layer joins its two halves. sequential: the MLP reads the normed sum of input and attention.
parallel: attention and MLP both read the input. post_norm: norms stand after each sum."""


Fused = Literal["", "thirds", "heads"]
"""How one projection holds queries, keys and values. thirds: all queries, all keys, all values.
heads: query, key and value of each head beside each other."""
Rotary = Literal["", "halves", "pairs"]
"""Which features of a head turn together, where positions are rotations: feature i with feature i + half the
width, or each feature with its neighbour."""


@dataclass(frozen=True)
class Parts:
    """The modules of a layer's two halves; paths start at the layer."""

    attention_norm: str
    projections: tuple[str, ...]
    """Queries, keys and values: three modules, or one that holds all."""
    attention_out: str
    """Its input is the heads' outputs beside each other."""
    up: str
    """Into the MLP's neurons."""
    activation: str
    down: str
    """Out of the MLP's neurons; its input is what they say."""
    gate: str = ""
    """Where there is one, neurons are ``activation(gate) * up``; elsewhere ``activation(up)``."""
    fused: Fused = ""
    rotary: Rotary = ""


@dataclass(frozen=True)
class Family:
    """The module names of a family; paths start at the module named in the line above."""

    name: str
    """``config.model_type``."""
    trunk: str
    """The module that runs the layers, below ``model.base_model``; "" where they are the same."""
    layers: str
    """The list of decoder layers, below the trunk."""
    attention: str
    """Below a layer."""
    mlp_first: str
    """The module whose input is the MLP's, below a layer."""
    mlp_last: str
    """The module whose output is the MLP's, below a layer."""
    mlp_norm: str
    """The norm before the MLP, below a layer; its input is the residual stream in sequential layers."""
    parts: Parts
    final: tuple[str, ...]
    """What stands between the last layer and the head, below the trunk; some models lack some of it."""
    block: Block = "sequential"
    parallel_if: str = ""
    """The configuration flag that turns the layers parallel, where there is one."""
    post_norm_unless: str = ""
    """The configuration flag that keeps norms before attention and MLP, where there is one."""


def _separate(attention: str, out: str, norm: str, up: str, activation: str, down: str, **more: Any) -> Parts:
    """Describe a layer whose queries, keys and values have a projection each."""
    names = tuple(f"{attention}.{letter}_proj" for letter in "qkv")
    return Parts(norm, names, f"{attention}.{out}", up, activation, down, **more)


def _llama_like(name: str) -> Family:
    parts = _separate(
        "self_attn", "o_proj", "input_layernorm", "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
        gate="mlp.gate_proj", rotary="halves",
    )  # fmt: skip
    return Family(name, "", "layers", "self_attn", "mlp", "mlp", "post_attention_layernorm", parts, ("norm",))


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _llama_like("llama"),
        _llama_like("mistral"),
        Family(
            "gpt2", "", "h", "attn", "mlp", "mlp", "ln_2",
            Parts("ln_1", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.act", "mlp.c_proj", fused="thirds"),
            ("ln_f",),
        ),
        Family(
            "gptj", "", "h", "attn", "mlp", "mlp", "ln_1",
            _separate("attn", "out_proj", "ln_1", "mlp.fc_in", "mlp.act", "mlp.fc_out", rotary="pairs"),
            ("ln_f",), block="parallel",
        ),
        Family(
            "gpt_neox", "", "layers", "attention", "mlp", "mlp", "post_attention_layernorm",
            Parts(
                "input_layernorm", ("attention.query_key_value",), "attention.dense",
                "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", fused="heads", rotary="halves",
            ),
            ("final_layer_norm",), parallel_if="use_parallel_residual",
        ),
        Family(
            "opt", "decoder", "layers", "self_attn", "fc1", "fc2", "final_layer_norm",
            _separate("self_attn", "out_proj", "self_attn_layer_norm", "fc1", "activation_fn", "fc2"),
            ("final_layer_norm", "project_out"), post_norm_unless="do_layer_norm_before",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Anatomy:
    """One model's parts, found."""

    family: Family
    trunk: PreTrainedModel
    """Takes ``past_key_values`` and returns the hidden states."""
    layers: Sequence[nn.Module]
    width: int
    """Size D of a hidden state."""
    block: Block


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model: a causal LM, or its base model.

    Raises:
        UnsupportedModelError: if the model's family has no row, or its row does not fit the model.
    """
    family = family_of(model)
    try:
        trunk = model.base_model.get_submodule(family.trunk)
        layers = trunk.get_submodule(family.layers)
        layers[0].get_submodule(family.mlp_last)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not laid out as other {family.name} models: {error}. "
            "Pass the causal language model, or its base model"
        ) from None
    return Anatomy(family, trunk, layers, model.config.hidden_size, _block(family, model.config))


def family_of(model: PreTrainedModel) -> Family:
    """Return the table row of a model's family.

    Raises:
        UnsupportedModelError: if there is none.
    """
    name = getattr(getattr(model, "config", None), "model_type", None)
    if name not in FAMILIES or not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is of no known family; "
            f"known: {', '.join(FAMILIES)}. docs/architecture.md shows how to describe a new one"
        )
    return FAMILIES[name]


def _block(family: Family, config: Any) -> Block:
    if family.parallel_if and getattr(config, family.parallel_if):
        return "parallel"
    if family.post_norm_unless and not getattr(config, family.post_norm_unless):
        return "post_norm"
    return family.block


def attention_scale(config: Any, layer: int) -> float:
    """Return what the products of queries and keys are multiplied by; two settings of GPT-2 change the usual."""
    head_width = config.hidden_size // config.num_attention_heads
    scale = head_width**-0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if getattr(config, "scale_attn_by_inverse_layer_idx", False) else scale


def numbered(layer: nn.Module) -> list[Any]:
    """Return the modules of a layer that know its place, as ``layer_idx``: GPT-2's attention, whose scale may vary."""
    return [module for module in layer.modules() if isinstance(getattr(module, "layer_idx", None), int)]


def rotation(attention: Any, kind: Rotary, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines, each [T, width], that turn the first ``width`` features of a head; None for none.

    Args:
        attention: the attention module of a layer.
        kind: how its family pairs features.
        like: any tensor of the wanted dtype and device.
        n_tokens: length T of the whole sequence, on which some models' rotations depend.
    """
    if kind == "halves":
        cos, sin = attention.rotary_emb(like, seq_len=n_tokens)
        return cos[0, 0, :n_tokens].to(like), sin[0, 0, :n_tokens].to(like)
    if kind == "pairs":
        sin, cos = attention.embed_positions[:n_tokens].to(like).repeat_interleave(2, dim=-1).chunk(2, dim=-1)
        return cos, sin
    return None


def past_length(past_key_values: Any) -> int:
    """Return the number of columns a cache holds; 0 for None.

    In all these families a cache is a tuple over layers of (keys, values), each [B, H, T, D].
    """
    if past_key_values is None or past_key_values[0] is None:
        return 0
    return past_key_values[0][0].shape[-2]


def blank_past(n_layers: int, n_rows: int, n_columns: int, like: Tensor) -> Any:
    """Return a cache that holds nothing but its length; it takes no memory."""
    part = like.new_zeros(1, 1, 1, 1).expand(n_rows, 1, n_columns, 1)
    return ((part, part),) * n_layers


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the hidden states [B, T, D] from the arguments of a layer's call."""
    return args[0] if args else kwargs["hidden_states"]


def with_layer_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer's call with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}


def input_device(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its input ids; a model with offloaded parameters takes them on the CPU."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextmanager
def keeping_activations(trunk: PreTrainedModel) -> Iterator[None]:
    """Turn gradient checkpointing off for the time of a ``with`` block.

    It runs layers without a graph, and again in backward, when the hooks of the block are gone: what they
    recorded would have no gradient, and what they edited the gradient of another pass.
    """
    had = getattr(trunk, "gradient_checkpointing", False)
    if not had:
        yield
        return
    trunk.gradient_checkpointing = False
    try:
        yield
    finally:
        trunk.gradient_checkpointing = had


@contextmanager
def last_attention_only(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers keep the attention of the last token alone, [B, H, 1, T], in passes that ask for it without a cache.

    A model holds the patterns of all its layers until its pass is over; whole, they grow with the square of the text.
    """

    def cut(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Without a cache, patterns stand after the hidden states: of a text itself, and of its source if there is one.
        return (output[0], *(pattern[:, :, -1:].clone() for pattern in output[1:]))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(only_in_this_thread(cut)).remove)
        yield


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers keep nothing for backward but their input, in passes this thread makes inside the ``with`` block.

    Backward, also after the block, runs a layer again: in the mode its modules had, with the random numbers they drew,
    and with the hooks of this thread that are there then. Stock checkpointing asks for a model in training mode.
    """
    thread = _passing_thread()

    def again(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if _passing_thread() != thread or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            modes = [(module, module.training) for module in layer.modules()]

            def forward_as_now(*args: Any, **kwargs: Any) -> Any:
                with _standing_in(thread), _in_modes(modes):
                    return forward(*args, **kwargs)

            return checkpoint(forward_as_now, *args, use_reentrant=False, **kwargs)

        return run

    with ExitStack() as stack:
        # A layer that stands in several places is changed once.
        for layer in {id(layer): layer for layer in layers}.values():
            stack.callback(_put_back, layer, vars(layer).get("forward"))
            layer.forward = again(layer, layer.forward)
        yield


def _put_back(layer: nn.Module, own: Callable[..., Any] | None) -> None:
    """Give a layer the forward of its class again, or one that accelerate had put on it."""
    if own is None:
        del layer.forward
    else:
        layer.forward = own


@contextmanager
def _in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Put modules into training or evaluation mode for the time of a ``with`` block."""
    before = [(module, module.training) for module, _ in modes]
    try:
        for module, training in modes:
            module.training = training
        yield
    finally:
        for module, training in before:
            module.training = training


_for_thread = threading.local()


@contextmanager
def _standing_in(thread: int) -> Iterator[None]:
    """Compute a pass of another thread: autograd has threads of its own."""
    before = getattr(_for_thread, "ident", None)
    _for_thread.ident = thread
    try:
        yield
    finally:
        _for_thread.ident = before


def _passing_thread() -> int:
    """Return the thread whose pass this one computes."""
    return getattr(_for_thread, "ident", None) or get_ident()


def only_in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Keep a hook from the passes other threads make through the same model."""
    thread = _passing_thread()
    return lambda *event: hook(*event) if _passing_thread() == thread else None


def check_evaluating(model: PreTrainedModel) -> None:
    """Refuse a model in training mode.

    Raises:
        InputError: if it is.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout makes every run another: call model.eval()")


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Keep a model in evaluation mode for the time of a ``with`` block, then each module in the mode it had."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
