"""The supported model families: one row of module names each.

To support another family, add a row to ``FAMILIES``, here or by ``register_family``; docs/architecture.md explains how
to find its values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

Block = Literal["sequential", "parallel", "post_norm"]
"""How a layer combines attention and MLP. sequential: the MLP reads the normed sum of the layer's input and the
attention's output. parallel: attention and MLP both read the layer's input. post_norm: a norm follows each sum."""
Fused = Literal["", "blocks", "groups", "quarters"]
"""How one projection packs queries, keys and values. blocks: all queries, then all keys, then all values.
groups: for each key-value head the queries that share it, its key and its value. quarters: for each quarter of the
heads their queries, their values and their keys. "": separate projections."""
Rotary = Literal["", "halves", "pairs"]
"""Which features of a head rotary embeddings rotate together. halves: feature i with feature i + width / 2.
pairs: features 2i and 2i + 1. "": no rotary embeddings."""


@dataclass(frozen=True)
class Parts:
    """The modules inside the attention and the MLP of a layer; paths are relative to the layer.

    A path may list alternatives, as ``"ln_mlp|input_layernorm"``: the first one that a model's layers have is used.
    """

    attention_norm: str
    """The norm before the projections; "" if the attention reads the residual stream directly."""
    projections: tuple[str, ...]
    """Queries, keys and values: three modules, or one module for all three."""
    attention_out: str
    """The output projection; its input is the concatenation of the heads' outputs."""
    up: str = ""
    """The projection into the MLP's neurons; "" if the MLP is run as a whole, as a mixture of experts."""
    activation: str = ""
    down: str = ""
    """The projection out of the MLP's neurons; its input is their activations."""
    gate: str = ""
    """The gate projection: neurons are ``activation(gate) * up``, or ``activation(up)`` without a gate. If it is the
    same module as ``up``, the first half of that module's output is the gate."""
    fused: Fused = ""
    rotary: Rotary = ""
    rotary_in: str = ""
    """The only type of layers (``config.layer_types``) with rotary embeddings, in models that have such layers."""
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
    scale: float | None = None
    """The factor on the attention scores, if it does not follow from the width of the heads."""
    sinks: str = ""
    """The parameter with one more attention score for each head, whose weight goes to no token."""


@dataclass(frozen=True)
class Experts:
    """The modules of a mixture of experts; paths are relative to the MLP, and may list alternatives.

    A layer may have an MLP without experts: it then has the modules ``gate``, ``up`` and ``down`` itself.
    """

    experts: str = "experts"
    """The module that holds the weights of all experts."""
    shared: str = "shared_expert|shared_experts|shared_mlp"
    """The experts that read every token, as one MLP; an MLP may lack them."""
    shared_gate: str = "shared_expert_gate"
    """The module whose output, through a sigmoid, weighs what the shared experts write; an MLP may lack it."""
    gate: str = "gate_proj"
    """The gate projection of shared experts, relative to them."""
    up: str = "up_proj"
    """Their other input projection."""
    down: str = "down_proj"
    """Their output projection."""


@dataclass(frozen=True)
class Family:
    """The module names of a family; the text under each field says what its path is relative to.

    Paths that are relative to a layer may list alternatives, as those of ``Parts``.
    """

    name: str
    """``config.model_type``."""
    trunk: str
    """The module that runs the layers, relative to the base model; "" for the base model itself."""
    layers: str
    """The list of decoder layers, relative to the trunk."""
    attention: str
    """The attention module, relative to a layer. "" if no layer has attention; with ``mixer``, some layers may lack
    it."""
    mlp_first: str
    """The module whose input is the MLP's input, relative to a layer; "" if no layer has an MLP."""
    mlp_last: str
    """The module whose output the MLP adds to the residual stream, relative to a layer; "" if no layer has an MLP."""
    mlp_norm: str
    """The norm before the MLP, relative to a layer; in sequential layers it reads the residual stream. "" for none."""
    final: tuple[str, ...]
    """The modules between the last layer and the unembedding, relative to the trunk; a model may lack some of them."""
    parts: Parts | None = None
    """What is needed to run a layer part by part; if None, whole forward passes are run instead."""
    experts: Experts | None = None
    """The modules inside the MLPs, if these are mixtures of experts; ``parts`` then names none of an MLP."""
    attention_last: str = ""
    """The module whose output the attention adds to the residual stream, if it is not ``attention``."""
    mixer: str = ""
    """The module whose output a layer without attention adds in its place, as a state space model or a convolution,
    relative to the layer. Each layer uses the first alternative that it has."""
    mlp_split_if: str = ""
    """The configuration setting, if there is one, with which the MLP adds the outputs of several modules, so that no
    module writes its output; what it adds can then not be read or edited."""
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
    whole_if: tuple[str, ...] = ()
    """The configuration settings, any of which makes it necessary to run a model in whole forward passes."""
    overwrites_mlp: bool = False
    """Whether the layer adds the attention's output to the MLP's in place, which changes what the MLP returned."""
    counts_mask: bool = False
    """Whether the model numbers tokens by the attention mask, and its default mask leaves out those of the cache."""
    since: str = ""
    """The first release of transformers that is supported for this family, if it is not the first with its models."""
    residual_scale: str = ""
    """The configuration setting by which the outputs of attention and MLP are multiplied before they are added to the
    residual stream, if there is one. Recorded and restored outputs include the factor. (Scales of the embeddings and of
    the attention scores need no field: the embeddings are computed by the model's own code, and the scale of the
    attention is read from its module.)"""

    def __str__(self) -> str:
        """Return the lines that register the row."""
        return f"register_family({_lines(self, '')})"

    @property
    def attention_output(self) -> str:
        """The module whose output the attention adds to the residual stream, relative to a layer."""
        return self.attention_last or self.attention


def _lines(row: Family | Parts | Experts, indent: str) -> str:
    """Return the call that makes a row, without the fields that have their defaults."""
    said = []
    for field in fields(row):
        value = getattr(row, field.name)
        if field.default is MISSING or value != field.default:
            shown = (
                _lines(value, f"{indent}    ") if isinstance(value, Parts | Experts) else repr(value).replace("'", '"')
            )
            said.append(f"{indent}    {field.name}={shown},\n")
    return f"{type(row).__name__}(\n{''.join(said)}{indent})"


def _separate(
    attention: str, out: str, norm: str, up: str = "", activation: str = "", down: str = "", **more: Any
) -> Parts:
    """Return the parts of a layer with separate projections for queries, keys and values."""
    names = tuple(f"{attention}.{letter}_proj" for letter in "qkv")
    return Parts(norm, names, f"{attention}.{out}", up, activation, down, **more)


def _gated(norm: str = "input_layernorm", rotary: Rotary = "halves", **more: Any) -> Parts:
    """Return the parts of a layer like those of Llama."""
    return _separate(
        "self_attn", "o_proj", norm, "mlp.up_proj", "mlp.act_fn", "mlp.down_proj",
        gate="mlp.gate_proj", rotary=rotary, **more,
    )  # fmt: skip


def _plain(norm: str = "input_layernorm", **more: Any) -> Parts:
    """Return the parts of a layer like those of Llama, with an MLP without a gate."""
    mlp = ("mlp.up_proj", "mlp.act_fn", "mlp.down_proj")
    return _separate("self_attn", "o_proj", norm, *mlp, rotary="halves", **more)


def _gate_in_up(**more: Any) -> Parts:
    """Return the parts of a layer like those of GLM, whose MLP computes gate and neurons by one module."""
    mlp = ("mlp.gate_up_proj", "mlp.activation_fn", "mlp.down_proj")
    return _separate("self_attn", "o_proj", "input_layernorm", *mlp, gate=mlp[0], rotary="pairs", **more)


def _mixture(
    name: str,
    norm: str = "input_layernorm",
    mlp_norm: str = "post_attention_layernorm",
    mlp: str = "mlp",
    rotary: Rotary = "halves",
    family: dict[str, Any] | None = None,
    **more: Any,
) -> Family:
    """Return the row of a family like Mixtral: the mixture of experts is run as a whole."""
    parts = _separate("self_attn", "o_proj", norm, rotary=rotary, **more)
    return _llama_like(name, parts, mlp_norm, mlp, experts=Experts(), **(family or {}))


def _llama_like(
    name: str, parts: Parts | None, mlp_norm: str = "post_attention_layernorm", mlp: str = "mlp", **more: Any
) -> Family:
    after: dict[str, Any] = {} if parts is None else {"attention_last": parts.attention_after}
    last = (parts and parts.mlp_after) or mlp
    return Family(name, "", "layers", "self_attn", mlp, last, mlp_norm, ("norm",), parts, **after, **more)


def _mixing(
    name: str, mixer: str, attention: str = "", mlp: str = "", mlp_norm: str = "", final: str = "norm", **more: Any
) -> Family:
    """Return the row of a family whose layers, or some of them, mix tokens without attention."""
    return Family(name, "", "layers", attention, mlp, mlp, mlp_norm, (final,), mixer=mixer, **more)


_NORMED_HEADS: dict[str, Any] = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
_NORMED_HEADS_IN_WORDS: dict[str, Any] = {"query_norm": "self_attn.q_layernorm", "key_norm": "self_attn.k_layernorm"}
_NORMED_AFTER: dict[str, Any] = {
    "attention_after": "post_attention_layernorm",
    "mlp_after": "post_feedforward_layernorm",
}
_GEMMA: dict[str, Any] = {**_NORMED_AFTER, "norm_offset": 1.0}
_GRANITE: dict[str, Any] = {"logit_divisor": "logits_scaling", "residual_scale": "residual_multiplier"}
_MIXTURE = "mlp|block_sparse_moe"  # the name in transformers 5, and before

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        # ---------------------------------------------------------------------------------- like Llama
        _llama_like("llama", _gated()),
        _llama_like("mistral", _gated()),
        _llama_like("ministral", _gated()),
        _llama_like("qwen2", _gated()),
        _llama_like("qwen3", _gated(**_NORMED_HEADS)),
        _llama_like("qwen2_vl_text", _gated()),
        _llama_like("qwen2_5_vl_text", _gated()),
        _llama_like("qwen3_vl_text", _gated(**_NORMED_HEADS)),
        _llama_like("gemma", _gated(norm_offset=1.0)),
        _llama_like(
            "gemma2", _gated(**_GEMMA), "pre_feedforward_layernorm",
            softcap="attn_logit_softcapping", final_softcap="final_logit_softcapping",
        ),
        _llama_like(
            "gemma3_text", _gated(**_GEMMA, **_NORMED_HEADS), "pre_feedforward_layernorm",
            final_softcap="final_logit_softcapping",
        ),
        _llama_like(
            "vaultgemma", _gated(norm_offset=1.0), "pre_feedforward_layernorm",
            softcap="attn_logit_softcapping", final_softcap="final_logit_softcapping",
        ),
        _llama_like(
            "phi3",
            Parts(
                "input_layernorm", ("self_attn.qkv_proj",), "self_attn.o_proj", "mlp.gate_up_proj",
                "mlp.activation_fn", "mlp.down_proj", gate="mlp.gate_up_proj", fused="blocks", rotary="halves",
            ),
        ),
        _llama_like("olmo", _gated(), whole_if=("clip_qkv",)),
        _llama_like("olmo2", _gated("", **_NORMED_AFTER, **_NORMED_HEADS), ""),
        _llama_like("olmo3", _gated("", **_NORMED_AFTER, **_NORMED_HEADS), ""),
        _llama_like("granite", _gated(), **_GRANITE),
        _llama_like("smollm3", _gated()),
        _llama_like("seed_oss", _gated()),
        _llama_like("cwm", _gated()),
        _llama_like("helium", _gated(rotary="pairs")),
        _llama_like("ernie4_5", _gated(rotary="pairs")),
        _llama_like("exaone4", _gated("", rotary_in="sliding_attention", **_NORMED_AFTER, **_NORMED_HEADS), ""),
        _llama_like("glm", _gate_in_up()),
        _llama_like(
            "glm4", _gate_in_up(attention_after="post_self_attn_layernorm", mlp_after="post_mlp_layernorm")
        ),
        _llama_like("arcee", _plain()),
        _llama_like("jais2", _plain()),
        _llama_like("nemotron", _plain(norm_offset=1.0)),
        _llama_like("apertus", _plain("attention_layernorm", **_NORMED_HEADS), "feedforward_layernorm"),
        _llama_like(
            "starcoder2",
            _separate(
                "self_attn", "o_proj", "input_layernorm", "mlp.c_fc", "mlp.act", "mlp.c_proj", rotary="halves"
            ),
        ),
        _llama_like(
            "hyperclovax", _gated(attention_after="post_norm1", mlp_after="post_norm2"), logit_scale="logits_scaling",
            residual_scale="residual_multiplier",
        ),
        _llama_like("ministral3", None),
        _llama_like("hunyuan_v1_dense", None),
        _llama_like("nanochat", None, final_softcap="final_logit_softcapping"),
        _llama_like("bitnet", None),
        _llama_like("diffllama", None),
        _llama_like("youtu", None),
        # ---------------------------------------------------------------------------------- parallel layers
        _llama_like(
            "cohere", _gated(rotary="pairs", **_NORMED_HEADS), "input_layernorm", block="parallel",
            logit_scale="logit_scale",
        ),
        _llama_like(
            "cohere2", _gated(rotary="pairs", rotary_in="sliding_attention"), "input_layernorm", block="parallel",
            logit_scale="logit_scale",
        ),
        Family(
            "phi", "", "layers", "self_attn", "mlp", "mlp", "input_layernorm", ("final_layernorm",),
            _separate(
                "self_attn", "dense", "input_layernorm", "mlp.fc1", "mlp.activation_fn", "mlp.fc2",
                rotary="halves", **_NORMED_HEADS_IN_WORDS,
            ),
            block="parallel",
        ),
        Family(
            "stablelm", "", "layers", "self_attn", "mlp", "mlp", "post_attention_layernorm|input_layernorm", ("norm",),
            _gated(), parallel_if="use_parallel_residual", whole_if=("qk_layernorm",),
        ),
        Family(
            "gptj", "", "h", "attn", "mlp", "mlp", "ln_1", ("ln_f",),
            _separate("attn", "out_proj", "ln_1", "mlp.fc_in", "mlp.act", "mlp.fc_out", rotary="pairs"),
            block="parallel",
        ),
        Family(
            "codegen", "", "h", "attn", "mlp", "mlp", "ln_1", ("ln_f",),
            Parts(
                "ln_1", ("attn.qkv_proj",), "attn.out_proj", "mlp.fc_in", "mlp.act", "mlp.fc_out",
                fused="quarters", rotary="pairs",
            ),
            block="parallel",
        ),
        Family(
            "gpt_neox", "", "layers", "attention", "mlp", "mlp", "post_attention_layernorm", ("final_layer_norm",),
            Parts(
                "input_layernorm", ("attention.query_key_value",), "attention.dense",
                "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", fused="groups", rotary="halves",
            ),
            parallel_if="use_parallel_residual",
        ),
        Family(
            "falcon", "", "h", "self_attention", "mlp", "mlp", "ln_mlp|post_attention_layernorm|input_layernorm",
            ("ln_f",),
            Parts(
                "ln_attn|input_layernorm", ("self_attention.query_key_value",), "self_attention.dense",
                "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", fused="groups", rotary="halves",
            ),
            parallel_if="parallel_attn", whole_if=("alibi",), overwrites_mlp=True,
        ),
        # ---------------------------------------------------------------------------------- like GPT-2
        Family(
            "gpt2", "", "h", "attn", "mlp", "mlp", "ln_2", ("ln_f",),
            Parts("ln_1", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.act", "mlp.c_proj", fused="blocks"),
        ),
        Family(
            "gpt_bigcode", "", "h", "attn", "mlp", "mlp", "ln_2", ("ln_f",),
            Parts("ln_1", ("attn.c_attn",), "attn.c_proj", "mlp.c_fc", "mlp.act", "mlp.c_proj", fused="groups"),
        ),
        Family(
            "gpt_neo", "", "h", "attn", "mlp", "mlp", "ln_2", ("ln_f",),
            _separate("attn.attention", "out_proj", "ln_1", "mlp.c_fc", "mlp.act", "mlp.c_proj", scale=1.0),
        ),
        Family(
            "opt", "decoder", "layers", "self_attn", "fc1", "fc2", "final_layer_norm",
            ("final_layer_norm", "project_out"),
            _separate("self_attn", "out_proj", "self_attn_layer_norm", "fc1", "activation_fn", "fc2"),
            post_norm_unless="do_layer_norm_before",
        ),
        Family(
            "xglm", "", "layers", "self_attn", "fc1", "fc2", "final_layer_norm", ("layer_norm",),
            _separate("self_attn", "out_proj", "self_attn_layer_norm", "fc1", "activation_fn", "fc2"),
        ),
        Family(
            "biogpt", "", "layers", "self_attn", "fc1", "fc2", "final_layer_norm", ("layer_norm",),
            _separate("self_attn", "out_proj", "self_attn_layer_norm", "fc1", "activation_fn", "fc2"),
            counts_mask=True,  # in transformers 4.34.0
        ),
        Family(
            "persimmon", "", "layers", "self_attn", "mlp", "mlp", "post_attention_layernorm", ("final_layernorm",),
            Parts(
                "input_layernorm", ("self_attn.query_key_value",), "self_attn.dense",
                "mlp.dense_h_to_4h", "mlp.act", "mlp.dense_4h_to_h", fused="groups", rotary="halves",
                **_NORMED_HEADS_IN_WORDS,
            ),
        ),
        # ---------------------------------------------------------------------------------- linear position biases
        Family(
            "bloom", "", "h", "self_attention", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "post_attention_layernorm",
            ("ln_f",), attention_last="self_attention.dense",
        ),
        Family("mpt", "", "blocks", "attn", "ffn.up_proj", "ffn.down_proj", "norm_2", ("norm_f",)),
        # ---------------------------------------------------------------------------------- mixtures of experts
        _mixture("mixtral", mlp=_MIXTURE),
        _mixture("qwen2_moe"),
        _mixture("qwen3_moe", **_NORMED_HEADS),
        _mixture("olmoe", family={"whole_if": ("clip_qkv",)}, **_NORMED_HEADS),
        _mixture("gpt_oss", sinks="self_attn.sinks"),
        _mixture("granitemoe", mlp=_MIXTURE, family=_GRANITE),
        _mixture("phimoe", mlp=_MIXTURE),
        _mixture("ernie4_5_moe", rotary="pairs"),
        _mixture("glm4_moe", **_NORMED_HEADS),
        _mixture("dots1", **_NORMED_HEADS),
        _mixture("minimax_m2", mlp=_MIXTURE, **_NORMED_HEADS),
        _mixture("solar_open"),
        _mixture("mellum", **_NORMED_HEADS),
        _mixture("qwen3_vl_moe_text", **_NORMED_HEADS),
        _mixture("flex_olmo", "", "", **_NORMED_AFTER, **_NORMED_HEADS),
        _llama_like("hunyuan_v1_moe", None, experts=Experts()),
        _llama_like("llama4_text", None, mlp="feed_forward", experts=Experts()),
        _llama_like("deepseek_v2", None, experts=Experts()),
        _llama_like("deepseek_v3", None, experts=Experts()),
        # ---------------------------------------------------------------------------------- without attention
        _mixing("mamba", "mixer", final="norm_f"),
        _mixing("mamba2", "mixer", final="norm_f"),
        _mixing("falcon_mamba", "mixer", final="norm_f"),
        _mixing("zamba2", "mamba|mamba_decoder.mamba", final="final_layernorm"),
        # ---------------------------------------------------------------------------------- attention in some layers
        _mixing(
            "jamba", "mamba", "self_attn", "feed_forward", "pre_ff_layernorm", final="final_layernorm",
            experts=Experts(),
        ),
        _mixing("bamba", "mamba", "self_attn", "feed_forward", "pre_ff_layernorm", final="final_layernorm"),
        _mixing("lfm2", "conv", "self_attn", "feed_forward", "ffn_norm", final="embedding_norm"),
        _mixing(
            "lfm2_moe", "conv", "self_attn", "feed_forward", "ffn_norm", final="embedding_norm",
            experts=Experts(gate="w1", up="w3", down="w2"),
        ),
        _mixing("qwen3_next", "linear_attn", "self_attn", "mlp", "post_attention_layernorm", experts=Experts()),
        _mixing(
            "granitemoehybrid", "mamba", "self_attn", "shared_mlp", "post_attention_layernorm",
            mlp_split_if="num_local_experts", **_GRANITE,
        ),
        _mixing(
            "recurrent_gemma", "temporal_block.linear_out", "temporal_block", "mlp_block", "channel_pre_norm",
            final="final_norm", attention_last="temporal_block.o_proj", final_softcap="logits_soft_cap",
            since="5.0",  # before, a pass without a cache begins with the states that the pass before it left behind
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


@contextmanager
def using_family(family: Family) -> Iterator[None]:
    """Use a row in place of that of its family inside the ``with`` block.

    Args:
        family: a row of the table; its family may have none.
    """
    before = FAMILIES.get(family.name)
    FAMILIES[family.name] = family
    try:
        yield
    finally:
        if before is None:
            del FAMILIES[family.name]
        else:
            FAMILIES[family.name] = before
