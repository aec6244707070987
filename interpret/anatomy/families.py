"""The supported model families: one row of module names each.

To support another family, add a row to ``FAMILIES``, here or by ``register_family``; docs/architecture.md explains how
to find its values.
"""

from dataclasses import dataclass
from typing import Any, Literal

Block = Literal["sequential", "parallel", "post_norm"]
"""How a layer combines attention and MLP. sequential: the MLP reads the normed sum of the layer's input and the
attention's output. parallel: attention and MLP both read the layer's input. post_norm: a norm follows each sum."""
Fused = Literal["", "blocks", "heads"]
"""How one projection packs queries, keys and values. blocks: all queries, then all keys, then all values.
heads: query, key and value of the first head, then of the next. "": separate projections."""
Rotary = Literal["", "halves", "pairs"]
"""Which features of a head rotary embeddings rotate together. halves: feature i with feature i + width / 2.
pairs: features 2i and 2i + 1. "": no rotary embeddings."""


@dataclass(frozen=True)
class Parts:
    """The modules inside the attention and the MLP of a layer; paths are relative to the layer."""

    attention_norm: str
    """The norm before the projections; "" if the attention reads the residual stream directly."""
    projections: tuple[str, ...]
    """Queries, keys and values: three modules, or one module for all three."""
    attention_out: str
    """The output projection; its input is the concatenation of the heads' outputs."""
    up: str
    """The projection into the MLP's neurons."""
    activation: str
    down: str
    """The projection out of the MLP's neurons; its input is their activations."""
    gate: str = ""
    """The gate projection: neurons are ``activation(gate) * up``, or ``activation(up)`` without a gate. If it is the
    same module as ``up``, the first half of that module's output is the gate."""
    fused: Fused = ""
    rotary: Rotary = ""
    query_norm: str = ""
    """The norm of the queries before the rotation; a model may lack it. Its width decides whether it acts on each head
    or on all heads concatenated."""
    key_norm: str = ""
    """The same for the keys."""
    attention_after: str = ""
    """The norm of the attention's output before it is added to the residual stream."""
    mlp_after: str = ""
    """The norm of the MLP's output before it is added to the residual stream."""
    norm_offset: float = 0.0
    """The constant that the norms add to their weights."""


@dataclass(frozen=True)
class Family:
    """The module names of a family; the text under each field says what its path is relative to."""

    name: str
    """``config.model_type``."""
    trunk: str
    """The module that runs the layers, relative to ``model.base_model``; "" for ``model.base_model`` itself."""
    layers: str
    """The list of decoder layers, relative to the trunk."""
    attention: str
    """The attention module, relative to a layer."""
    mlp_first: str
    """The module whose input is the MLP's input, relative to a layer."""
    mlp_last: str
    """The module whose output the MLP adds to the residual stream, relative to a layer."""
    mlp_norm: str
    """The norm before the MLP, relative to a layer; in sequential layers it reads the residual stream. "" for none."""
    final: tuple[str, ...]
    """The modules between the last layer and the unembedding, relative to the trunk; a model may lack some of them."""
    parts: Parts | None = None
    """What is needed to run a layer part by part; if None, whole forward passes are run instead."""
    attention_last: str = ""
    """The module whose output the attention adds to the residual stream, if it is not ``attention``."""
    block: Block = "sequential"
    parallel_if: str = ""
    """The configuration flag that makes the layers parallel, if there is one."""
    post_norm_unless: str = ""
    """The configuration flag, if there is one, without which the layers are post_norm."""
    softcap: str = ""
    """The configuration setting c that caps attention scores s as ``c * tanh(s / c)``, if there is one."""
    final_softcap: str = ""
    """The same for the logits."""
    logit_scale: str = ""
    """The configuration setting by which the output of the unembedding is multiplied, if there is one."""
    logit_divisor: str = ""
    """The configuration setting by which the output of the unembedding is divided, if there is one."""
    residual_scale: str = ""
    """The configuration setting by which the outputs of attention and MLP are multiplied before they are added to the
    residual stream, if there is one. Recorded and restored outputs include the factor. (Scales of the embeddings and of
    the attention scores need no field: the embeddings are computed by the model's own code, and the scale of the
    attention is read from its module.)"""

    @property
    def attention_output(self) -> str:
        """The module whose output the attention adds to the residual stream, relative to a layer."""
        return self.attention_last or self.attention


def _separate(attention: str, out: str, norm: str, up: str, activation: str, down: str, **more: Any) -> Parts:
    """Return the parts of a layer with separate projections for queries, keys and values."""
    names = tuple(f"{attention}.{letter}_proj" for letter in "qkv")
    return Parts(norm, names, f"{attention}.{out}", up, activation, down, **more)


def _gated(norm: str = "input_layernorm", rotary: Rotary = "halves", **more: Any) -> Parts:
    """Return the parts of a layer like those of Llama."""
    return _separate(
        "self_attn", "o_proj", norm, "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
        gate="mlp.gate_proj", rotary=rotary, **more,
    )  # fmt: skip


def _llama_like(name: str, parts: Parts, mlp_norm: str = "post_attention_layernorm", **more: Any) -> Family:
    last = parts.mlp_after or "mlp"
    return Family(
        name, "", "layers", "self_attn", "mlp", last, mlp_norm, ("norm",), parts,
        attention_last=parts.attention_after, **more,
    )  # fmt: skip


_NORMED_HEADS: dict[str, Any] = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_NORMED_AFTER: dict[str, Any] = {
    "attention_after": "post_attention_layernorm",
    "mlp_after": "post_feedforward_layernorm",
}
_GEMMA: dict[str, Any] = {**_NORMED_AFTER, "norm_offset": 1.0}

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
        _llama_like("granite", _gated(), logit_divisor="logits_scaling", residual_scale="residual_multiplier"),
        _llama_like(
            "cohere", _gated(rotary="pairs", **_NORMED_HEADS), "input_layernorm", block="parallel",
            logit_scale="logit_scale",
        ),
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
"""The families by name, including those added by ``register_family``."""


def register_family(family: Family) -> None:
    """Add a family for the rest of the process; a family of the same name is replaced.

    Args:
        family: its row of the table.

    >>> register_family(FAMILIES["llama"])
    """
    FAMILIES[family.name] = family
