"""Rows of families found by inspection, against the rows of the table and against models of one's own."""

import contextlib
import dataclasses

import pytest
import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from interpret import attach, describe, record, register_family
from interpret.anatomy import FAMILIES, Family, Parts, check_scores
from interpret.engine.recording import record_run
from interpret.engine.trunk import check_trunk, trunk_of
from interpret.errors import UnsupportedModelError
from reference.kinds import KINDS, MORE_KINDS, D, L, V
from reference.tiny import hooks_on, tiny_model

IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
REMOVED = (
    "llama",
    "gpt2",
    "gptj",
    "opt",
    "phi3",
    "gemma2",
    "olmo2",
    "glm4",
    "codegen",
    "persimmon",
    "falcon",
    "mixtral",
)
"""Kinds that are found part by part."""


@contextlib.contextmanager
def without_row(name):
    known = dict(FAMILIES)
    try:
        yield FAMILIES.pop(name, None)
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)


@pytest.mark.parametrize("kind", [kind for kind in REMOVED if kind in KINDS | MORE_KINDS])
@torch.no_grad()
def test_a_removed_row_is_found_again(kind):
    model = tiny_model(kind)
    with without_row(model.config.model_type) as removed:
        found = describe(model)
        assert model.config.model_type not in FAMILIES, "describe registers nothing"
        for name in ("trunk", "layers", "attention", "attention_output", "overwrites_mlp"):
            assert getattr(found, name) == getattr(removed, name)
        assert found.parts.projections == removed.parts.projections
        assert found.experts == (removed.experts if transformers.__version__.startswith("5") else None)
        register_family(found)
        check_scores(model)
        trunk = trunk_of(model, IDS.shape[1])
        embeddings = trunk.embed(IDS)
        last = record_run(trunk.layers, trunk.enter(embeddings), ()).states[-1]
        torch.testing.assert_close(trunk.logits(last), model(IDS).logits, rtol=0, atol=2e-4)
        check_trunk(model, trunk, embeddings, last)
    assert hooks_on(model) == 0


def test_layers_that_cannot_be_run_part_by_part_are_described_without_parts():
    with without_row("bloom"):
        found = describe(tiny_model("bloom"))
    assert found.parts is None
    assert found.attention_output == "self_attention.dense"


def test_an_unknown_family_is_described_when_surgery_is_attached_and_said_once():
    with without_row("gpt2"):
        model = tiny_model("gpt2")
        with pytest.warns(UserWarning, match="the family 'gpt2' has no row; one was found by inspection and proved"):
            attach(model)
        attach(model)
        assert FAMILIES["gpt2"].parts is not None


def test_it_prints_the_lines_to_write():
    with without_row("gpt2"):
        found = describe(tiny_model("gpt2"))
        printed = str(found)
        assert printed.startswith('register_family(Family(\n    name="gpt2",\n    trunk="",\n    layers="h",\n')
        exec(printed, {"register_family": register_family, "Family": Family, "Parts": Parts})
        assert FAMILIES["gpt2"] == found


# ------------------------------------------------------------------------------------------------ a model of one's own


class TinyConfig(PretrainedConfig):
    model_type = "own_gpt"

    def __init__(self, vocab_size=V, hidden_size=D, num_hidden_layers=L, num_attention_heads=4, bent="", **more):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.bent = bent
        super().__init__(**more)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.act, self.narrow = nn.Linear(D, 48), nn.GELU(), nn.Linear(48, D)

    def forward(self, x):
        return self.narrow(self.act(self.wide(x)))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.bent = config.bent == "layers"
        self.norm_a, self.norm_b = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn, self.mlp = Attention(config), MLP()

    def forward(self, x):
        x = x + self.attn(self.norm_a(x))
        return x + self.mlp(self.norm_b(x)) * (1.5 if self.bent else 1.0)


class OwnModel(PreTrainedModel):
    config_class, base_model_prefix = TinyConfig, "body"

    def __init__(self, config):
        super().__init__(config)
        self.tokens, self.places = nn.Embedding(config.vocab_size, D), nn.Embedding(64, D)
        self.stack = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.ending = nn.LayerNorm(D)
        self.post_init()

    def get_input_embeddings(self):
        return self.tokens

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False, past_key_values=None, **options):
        x = self.tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x = x + self.places(torch.arange(x.shape[1]))
        for layer in self.stack:
            x = layer(x)
        return BaseModelOutput(self.ending(x))


class OwnLM(PreTrainedModel, GenerationMixin):
    config_class, base_model_prefix = TinyConfig, "body"

    def __init__(self, config):
        super().__init__(config)
        self.body, self.head = OwnModel(config), nn.Linear(D, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False, **options):
        states = self.body(input_ids, inputs_embeds)[0]
        return CausalLMOutput(logits=self.head(states) * (1.5 if self.config.bent == "logits" else 1.0))


def own_model(**options):
    torch.manual_seed(0)
    model = OwnLM(TinyConfig(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def test_a_model_of_ones_own_is_found():
    model = own_model()
    with without_row("own_gpt"):
        register_family(describe(model))
        assert FAMILIES["own_gpt"] == Family(
            "own_gpt", "", "stack", "attn", "mlp", "mlp", "norm_b", ("ending",),
            Parts("norm_a", ("attn.qkv",), "attn.out", "mlp.wide", "mlp.act", "mlp.narrow", fused="blocks"),
        )  # fmt: skip
        names = [f"{site}.{layer}" for layer in range(L) for site in ("resid_mid", "mlp_out", "resid_post")]
        with record(model, names) as seen:
            logits = model(IDS).logits
        for layer in range(L):
            torch.testing.assert_close(
                seen[f"resid_mid.{layer}"] + seen[f"mlp_out.{layer}"], seen[f"resid_post.{layer}"]
            )
        trunk = trunk_of(model, IDS.shape[1])
        last = record_run(trunk.layers, trunk.enter(trunk.embed(IDS)), ()).states[-1]
        torch.testing.assert_close(trunk.logits(last), logits, rtol=0, atol=1e-4)


@torch.no_grad()
def test_layers_whose_modules_do_not_add_up_are_found_for_the_residual_stream_alone():
    model = own_model(bent="layers")
    with without_row("own_gpt"):
        with pytest.warns(
            UserWarning, match=r"proved on this model \(only its residual stream can be read and edited\)"
        ):
            attach(model)
        assert FAMILIES["own_gpt"] == Family("own_gpt", "", "stack", "", "", "", "", ("ending",))
        vector = torch.randn(1, 1, D, generator=torch.Generator().manual_seed(1))
        with record(model, ["resid_pre.2", "resid_post.1"]) as seen:
            edited = model.forward_interpret(IDS, insert_info=[{2: ([1], vector)}, None]).logits
        assert torch.equal(seen["resid_pre.2"][0, 1], vector[0, 0])
        assert not torch.allclose(edited[0, 1:], model(IDS).logits[0, 1:], atol=1e-2)
        assert torch.equal(edited[1], model(IDS).logits[1])
        said = (
            "^the family 'own_gpt' is described without attention of its layers, so there is no attn_out; the residual"
        )
        with pytest.raises(UnsupportedModelError, match=said), record(model, ["attn_out.1"]):
            pass


@pytest.mark.parametrize("kind", [kind for kind in ("mamba", "jamba", "lfm2", "qwen3_next") if kind in MORE_KINDS])
def test_a_removed_row_of_layers_without_attention_is_found_again(kind):
    model = tiny_model(kind)
    with without_row(model.config.model_type) as removed:
        found = describe(model)
    fused = transformers.__version__.startswith("5")  # before, experts are modules of their own
    assert found == (removed if fused else dataclasses.replace(removed, experts=None))


def test_a_model_that_cannot_be_found_is_refused_with_what_was_looked_for():
    message = (
        r"^OwnLM cannot be described: OwnLM \(model_type 'own_gpt'\): unembedding its last state gives a logit of .*"
        r"Looked for: a list of layers; in them modules, such as attention and MLP, .*"
        r"shows how to write the row yourself$"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        describe(own_model(bent="logits"))
    assert "own_gpt" not in FAMILIES


def test_a_model_without_a_head_is_refused(llama):
    with pytest.raises(UnsupportedModelError, match="^LlamaModel cannot be described: only causal language models"):
        describe(llama.model)
