"""The families this project knows: one row of module names each.

To describe another, add a row to ``FAMILIES``, here or by ``register_family``; docs/architecture.md says how to find
its values.
"""

from dataclasses import dataclass
from typing import Any, Literal

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
