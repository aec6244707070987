"""Where things are in a model: one table row for each family, and what differs between releases of transformers.

This is the only place that knows the module names of a family. To describe a new family, add a row to
``FAMILIES``, here or by ``register_family``; docs/architecture.md says how to find its values. Releases are told
apart by what they have, not by their numbers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import InputError, UnsupportedModelError
from interpret.passes import Forward, passing_thread, replaced_forwards

_WINDOW_COUNTS_ITSELF = find_spec("transformers.masking_utils") is not None
"""Whether a window of w tokens holds the token itself; in transformers 4.34.0 it is w tokens beside it."""

Block = Literal["sequential", "parallel", "post_norm"]
"""How a layer joins its two halves. sequential: the MLP reads the normed sum of input and attention.
parallel: attention and MLP both read the input. post_norm: norms stand after each sum."""


Fused = Literal["", "blocks", "heads"]
"""How one projection holds queries, keys and values. blocks: all queries, all keys, all values.
heads: query, key and value of each head beside each other."""
Rotary = Literal["", "halves", "pairs"]
"""Which features of a head turn together, where positions are rotations: feature i with feature i + half the
width, or each feature with its neighbour."""


@dataclass(frozen=True)
class Parts:
    """The modules of a layer's two halves; paths start at the layer."""

    attention_norm: str
    """Before the projections; "" where the attention reads the residual stream itself."""
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
    """Where there is one, neurons are ``activation(gate) * up``; elsewhere ``activation(up)``. Where it is the
    module of ``up``, the first half of its output is the gate."""
    fused: Fused = ""
    rotary: Rotary = ""
    query_norm: str = ""
    """A norm of the queries before they are rotated: of each head, or of all heads beside each other, as its width
    says."""
    key_norm: str = ""
    attention_after: str = ""
    """A norm of the attention's output before it joins the residual stream."""
    mlp_after: str = ""
    """A norm of the MLP's output before it joins the residual stream."""
    norm_offset: float = 0.0
    """What the norms add to their weights."""


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
    """The module whose output the MLP adds to the residual stream, below a layer."""
    mlp_norm: str
    """The norm before the MLP, below a layer; its input is the residual stream in sequential layers. "" for none."""
    final: tuple[str, ...]
    """What stands between the last layer and the head, below the trunk; some models lack some of it."""
    parts: Parts | None = None
    """What it takes to run a layer part by part; None where that is not known, and whole passes are run."""
    attention_last: str = ""
    """The module whose output the attention adds to the residual stream, where it is not ``attention``."""
    block: Block = "sequential"
    parallel_if: str = ""
    """The configuration flag that turns the layers parallel, where there is one."""
    post_norm_unless: str = ""
    """The configuration flag that keeps norms before attention and MLP, where there is one."""
    softcap: str = ""
    """The setting c by which attention scores s become ``c * tanh(s / c)``, where there is one."""
    final_softcap: str = ""
    """The same of the logits."""

    @property
    def attention_output(self) -> str:
        """The module whose output the attention adds to the residual stream, below a layer."""
        return self.attention_last or self.attention


def _separate(attention: str, out: str, norm: str, up: str, activation: str, down: str, **more: Any) -> Parts:
    """Describe a layer whose queries, keys and values have a projection each."""
    names = tuple(f"{attention}.{letter}_proj" for letter in "qkv")
    return Parts(norm, names, f"{attention}.{out}", up, activation, down, **more)


def _gated(norm: str = "input_layernorm", **more: Any) -> Parts:
    """Describe a layer as Llama has it."""
    return _separate(
        "self_attn", "o_proj", norm, "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
        gate="mlp.gate_proj", rotary="halves", **more,
    )  # fmt: skip


def _llama_like(name: str, parts: Parts, mlp_norm: str = "post_attention_layernorm", **more: Any) -> Family:
    last = parts.mlp_after or "mlp"
    return Family(
        name, "", "layers", "self_attn", "mlp", last, mlp_norm, ("norm",), parts,
        attention_last=parts.attention_after, **more,
    )  # fmt: skip


_NORMED_HEADS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_NORMED_AFTER: dict[str, Any] = {
    "attention_after": "post_attention_layernorm",
    "mlp_after": "post_feedforward_layernorm",
}
_GEMMA = {**_NORMED_AFTER, "norm_offset": 1.0}

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _llama_like("llama", _gated()),
        _llama_like("mistral", _gated()),
        _llama_like("qwen2", _gated()),
        _llama_like("qwen3", _gated(**_NORMED_HEADS)),
        _llama_like(
            "gemma2", _gated(**_GEMMA), "pre_feedforward_layernorm",
            softcap="attn_logit_softcapping", final_softcap="final_logit_softcapping",
        ),
        _llama_like(
            "gemma3_text", _gated(**_GEMMA, **_NORMED_HEADS), "pre_feedforward_layernorm",
            final_softcap="final_logit_softcapping",
        ),
        _llama_like(
            "phi3",
            Parts(
                "input_layernorm", ("self_attn.qkv_proj",), "self_attn.o_proj", "mlp.gate_up_proj",
                "mlp.activation_fn", "mlp.down_proj", gate="mlp.gate_up_proj", fused="blocks", rotary="halves",
            ),
        ),
        _llama_like("olmo2", _gated("", **_NORMED_AFTER, **_NORMED_HEADS), ""),
        Family(
            "gpt2", "", "h", "attn", "mlp", "mlp", "ln_2", ("ln_f",),
            Parts("ln_1", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.act", "mlp.c_proj", fused="blocks"),
        ),
        Family(
            "gptj", "", "h", "attn", "mlp", "mlp", "ln_1", ("ln_f",),
            _separate("attn", "out_proj", "ln_1", "mlp.fc_in", "mlp.act", "mlp.fc_out", rotary="pairs"),
            block="parallel",
        ),
        Family(
            "gpt_neox", "", "layers", "attention", "mlp", "mlp", "post_attention_layernorm", ("final_layer_norm",),
            Parts(
                "input_layernorm", ("attention.query_key_value",), "attention.dense",
                "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", fused="heads", rotary="halves",
            ),
            parallel_if="use_parallel_residual",
        ),
        Family(
            "opt", "decoder", "layers", "self_attn", "fc1", "fc2", "final_layer_norm",
            ("final_layer_norm", "project_out"),
            _separate("self_attn", "out_proj", "self_attn_layer_norm", "fc1", "activation_fn", "fc2"),
            post_norm_unless="do_layer_norm_before",
        ),
    )
}  # fmt: skip


def register_family(family: Family) -> None:
    """Make a family known, for the rest of the process; one of that name is replaced.

    >>> register_family(FAMILIES["llama"])
    """
    FAMILIES[family.name] = family


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

    @property
    def parts(self) -> Parts:
        """The modules of a layer's two halves.

        Raises:
            UnsupportedModelError: if the family's row does not say.
        """
        if self.family.parts is None:
            raise UnsupportedModelError(
                f"the row of the family {self.family.name!r} has no parts, so its layers are only run whole, and this "
                "needs their halves; docs/architecture.md shows how to describe them"
            )
        return self.family.parts


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """Find the parts of a model: a causal LM, or its base model.

    Raises:
        UnsupportedModelError: if the model's family has no row, or its row does not fit the model.
    """
    family = family_of(model)
    try:
        trunk = base_of(model).get_submodule(family.trunk)
        layers = trunk.get_submodule(family.layers)
        layers[0].get_submodule(family.mlp_last)
    except AttributeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} is not laid out as other {family.name} models: {error}. "
            "Pass the causal language model, or its base model"
        ) from None
    return Anatomy(family, trunk, layers, model.config.hidden_size, _block(family, model.config))


def base_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its head; one without a head is its own base model."""
    base = model.base_model
    # Gemma 3 of transformers 4.57 looks for it under the name it has in its models of images.
    return model.get_decoder() if base is model and model.get_output_embeddings() is not None else base


def family_of(model: PreTrainedModel) -> Family:
    """Return the table row of a model's family.

    Raises:
        UnsupportedModelError: if there is none.
    """
    name = getattr(getattr(model, "config", None), "model_type", None)
    if name not in FAMILIES or not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is of no known family; known: {', '.join(FAMILIES)}. "
            f"{_found_in(model)}docs/architecture.md, 'Describing another family', shows how in ten lines"
        )
    return FAMILIES[name]


def _found_in(model: Any) -> str:
    """Say what the longest list of modules in a model looks like: those are its layers."""
    named = model.named_modules() if isinstance(model, PreTrainedModel) else ()
    lists = [(len(module), name, module) for name, module in named if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        return ""
    count, name, layers = max(lists, key=lambda found: found[0])
    children = ", ".join(f"{child} ({type(module).__name__})" for child, module in layers[0].named_children())
    return f"Its layers seem to be {name!r}: {count} times {type(layers[0]).__name__} with {children}. "


def _block(family: Family, config: Any) -> Block:
    if family.parallel_if and getattr(config, family.parallel_if):
        return "parallel"
    if family.post_norm_unless and not getattr(config, family.post_norm_unless):
        return "post_norm"
    return family.block


def head_width(config: Any) -> int:
    """Return the features W of an attention head; some models have heads that are not D / H wide."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width


def key_heads(config: Any) -> int:
    """Return how many heads G have keys and values of their own."""
    number: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return number


def attention_scale(attention: nn.Module, config: Any, layer: int) -> float:
    """Return what the products of queries and keys are multiplied by.

    Two settings of GPT-2 change the usual; torch's own attention (sdpa) leaves them away in transformers 4.57.
    """
    own = getattr(attention, "scaling", None)
    if isinstance(own, float):
        return own
    if getattr(config, "_attn_implementation", "eager") == "sdpa":
        return head_width(config) ** -0.5
    scale = head_width(config) ** -0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if getattr(config, "scale_attn_by_inverse_layer_idx", False) else scale


def numbered(layer: nn.Module) -> list[Any]:
    """Return the modules of a layer that know its place, as ``layer_idx``: GPT-2's attention, whose scale may vary."""
    return [module for module in layer.modules() if isinstance(getattr(module, "layer_idx", None), int)]


def kind_of_layer(layer: nn.Module) -> str | None:
    """Return what a layer says its attention is, as in ``config.layer_types``; None where it does not."""
    said = (getattr(module, name, None) for module in layer.modules() for name in ("attention_type", "layer_type"))
    return next((kind for kind in said if isinstance(kind, str)), None)


def attention_softcap(family: Family, config: Any) -> float | None:
    """Return the c of ``Family.softcap``; torch's own attention (sdpa) leaves it away."""
    if not family.softcap or getattr(config, "_attn_implementation", "eager") == "sdpa":
        return None
    return getattr(config, family.softcap)


def window_of(config: Any, layer: int) -> int | None:
    """Return how many tokens back a layer's attention sees, where that is limited."""
    size, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if size is None or (kinds is not None and kinds[layer] != "sliding_attention"):
        return None
    return size - 1 if _WINDOW_COUNTS_ITSELF else size


def rotation(anatomy: Anatomy, layer: int, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor] | None:
    """Return cosines and sines, each [T, width], that turn the first ``width`` features of a head; None for none.

    Args:
        anatomy: the model's parts.
        layer: whose.
        like: any tensor of the wanted dtype and device.
        n_tokens: length T of the whole sequence, on which some models' rotations depend.
    """
    kind: Rotary = anatomy.parts.rotary
    attention: Any = anatomy.layers[layer].get_submodule(anatomy.family.attention)
    own = getattr(attention, "rotary_emb", None)
    if kind == "halves" and own is not None and "seq_len" in signature(own.forward).parameters:
        cos, sin = own(like, seq_len=n_tokens)
        return cos[0, 0, :n_tokens].to(like), sin[0, 0, :n_tokens].to(like)
    if kind == "halves":
        return _rotation_of_trunk(anatomy.trunk, layer, like, n_tokens)
    if kind == "pairs":
        sin, cos = attention.embed_positions[:n_tokens].to(like).repeat_interleave(2, dim=-1).chunk(2, dim=-1)
        return cos, sin
    return None


def _rotation_of_trunk(trunk: Any, layer: int, like: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Return a layer's rotations where the trunk computes them for all layers."""
    kinds = getattr(trunk.config, "layer_types", None)
    kind = kinds[layer] if kinds is not None else ""
    # Gemma 3 turns the layers with a window by other angles: by a module of their own, or as an argument says.
    local = kind == "sliding_attention" and hasattr(trunk, "rotary_emb_local")
    module = trunk.rotary_emb_local if local else trunk.rotary_emb
    asked = (kind,) if "layer_type" in signature(module.forward).parameters else ()
    cos, sin = module(like, torch.arange(n_tokens, device=like.device)[None], *asked)
    return cos[0].to(like), sin[0].to(like)


def logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits, [..., V], for what the head reads, [..., D]."""
    return capped(model.get_output_embeddings()(states), logit_cap(model))


def logit_cap(model: PreTrainedModel) -> float | None:
    """Return the c of ``Family.final_softcap``; None for a model without."""
    family = FAMILIES.get(model.config.model_type)
    return getattr(model.config, family.final_softcap) if family is not None and family.final_softcap else None


def capped(values: Tensor, cap: float | None) -> Tensor:
    """Return ``cap * tanh(values / cap)``; without a cap the values themselves."""
    return values if cap is None else torch.tanh(values / cap) * cap


def embedding_table(model: PreTrainedModel) -> Tensor:
    """Return the embedding of each token, [V, width], without a graph; some models scale their weights."""
    module: Any = model.get_input_embeddings()
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)
    return weight if scale is None else weight * torch.as_tensor(scale).to(weight)


def language_codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the languages a tokenizer of M2M100 or NLLB knows, each with the token that names it."""
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is not None:
        return dict(known)
    # NLLB's of later releases than 4.34.0 has them among its special tokens.
    codes = [token for token in tokenizer.all_special_tokens if re.fullmatch("[a-z]{3}_[A-Z][a-z]{3}", token)]
    return dict(zip(codes, tokenizer.convert_tokens_to_ids(codes), strict=True))


def given_embedding_scales(model: PreTrainedModel) -> tuple[float, float]:
    """Return what embeddings must be multiplied by before a translation model's encoder and decoder are given them.

    Given ids, these models scale their embeddings; given embeddings, most leave it out. Where the embeddings scale
    themselves (M2M100, NLLB of later releases than 4.34.0) nothing is left to do.
    """
    of_source, of_target = (getattr(part, "embed_scale", 1.0) for part in (model.get_encoder(), model.get_decoder()))
    scales_what_it_is_given = model.config.model_type == "marian" and hasattr(transformers, "Cache")
    return of_source, 1.0 if scales_what_it_is_given else of_target


def past_length(past_key_values: Any) -> int:
    """Return the number of columns a cache holds; 0 for None.

    A cache is an object that says so or, in transformers 4.34.0, a tuple over layers of (keys, values), each
    [B, H, T, D].
    """
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    if past_key_values is None or past_key_values[0] is None:
        return 0
    length: int = past_key_values[0][0].shape[-2]
    return length


def cache_tensors(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer of a cache that is an object, [B, G, T, W] each."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def blank_past(n_layers: int, n_rows: int, n_columns: int, like: Tensor) -> Any:
    """Return a cache that holds nothing but its length; it takes next to no memory."""
    part = like.new_zeros(1, 1, 1, 1).expand(n_rows, 1, n_columns, 1)
    if not hasattr(transformers, "DynamicCache"):
        return ((part, part),) * n_layers
    cache = transformers.DynamicCache()
    for layer in range(n_layers):
        cache.update(part, part, layer)
    return cache


def first_column(arguments: Mapping[str, Any], n_tokens: int, past: int) -> int:
    """Return the absolute column of the first token a pass of the trunk computes.

    Args:
        arguments: of the trunk's call.
        n_tokens: computed by the pass.
        past: columns in its cache when it began.
    """
    mask = arguments.get("attention_mask")
    # A sliding-window cache forgets columns, the mask does not; one that is prepared already says nothing.
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return max(past, mask.shape[1] - n_tokens)
    return past


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
    # The trunk has the switch, or each layer.
    switched = [module for module in trunk.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in switched:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True


@contextmanager
def reporting_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute its attention so that the probabilities exist, for the time of a ``with`` block."""
    config = model.config
    had = getattr(config, "_attn_implementation", "eager")
    if had != "sdpa":
        yield
        return
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = had


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules whose patterns a decoder reports, layer by layer; of a translation model two a layer.

    Raises:
        UnsupportedModelError: if the model is of no known family, and no translation model.
    """
    if model.config.is_encoder_decoder:
        return [part for layer in model.get_decoder().layers for part in (layer.self_attn, layer.encoder_attn)]
    anatomy = anatomy_of(model)
    return [layer.get_submodule(anatomy.family.attention) for layer in anatomy.layers]


@contextmanager
def last_attention_only(model: PreTrainedModel) -> Iterator[None]:
    """Let a decoder keep the attention of the last token alone, [B, H, 1, T], in passes without a cache.

    A model holds the patterns of all its layers until its pass is over; whole, they grow with the square of the text.
    """
    thread = passing_thread()

    def cut(module: nn.Module, forward: Forward) -> Forward:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            if passing_thread() != thread:
                return output
            # Without a cache, nothing that stands beside the hidden states has four dimensions but the pattern.
            return (output[0], *(_last_row(part) for part in output[1:]))

        return run

    # Not by hooks: transformers 4.57 takes the patterns between a module's forward and its hooks.
    with replaced_forwards(attention_modules(model), cut):
        yield


def _last_row(part: Any) -> Any:
    """Return a copy of the last token's attention, of a pattern [B, H, T, T]; of anything else, that itself."""
    return part[:, :, -1:].clone() if isinstance(part, Tensor) and part.dim() == 4 else part


def check_evaluating(model: PreTrainedModel) -> None:
    """Refuse a model in training mode.

    Raises:
        InputError: if it is.
    """
    if model.training:
        raise InputError("the model is in training mode, where dropout makes every run another: call model.eval()")
