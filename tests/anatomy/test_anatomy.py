import re
from contextlib import ExitStack
from inspect import signature
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GenerationConfig, GenerationMixin, LlamaForSequenceClassification

from interpret.anatomy import (
    FAMILIES,
    GenerateSettings,
    anatomy_of,
    cache_of,
    embedding_table,
    keeping_activations,
    layer_input,
    past_length,
    reporting_attention,
    text_config,
    uncompiled,
    with_layer_input,
)
from interpret.anatomy.calls import with_cache
from interpret.anatomy.changes import only_in_this_thread
from interpret.errors import UnsupportedModelError
from reference.kinds import ALL_KINDS, KINDS, MORE_KINDS, D, L, V
from reference.overlay import decoder_layers
from reference.tiny import tiny_model


def test_a_model_and_its_base_model_have_the_same_parts(family_model):
    for model in (family_model, family_model.base_model):
        anatomy = anatomy_of(model)
        assert list(anatomy.layers) == list(decoder_layers(family_model))
        assert len(anatomy.layers) == L
        assert anatomy.width == D


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("llama", "sequential"),
        ("mistral", "sequential"),
        ("gpt2", "sequential"),
        ("gptj", "parallel"),
        ("gpt_neox", "parallel"),
        ("gpt_neox_sequential", "sequential"),
        ("opt", "sequential"),
        ("opt_post_norm", "post_norm"),
    ],
)
def test_the_configuration_decides_how_a_layer_joins_its_halves(kind, block):
    assert anatomy_of(tiny_model(kind)).block == block


def test_every_family_is_tested():
    assert {ALL_KINDS[kind].family for kind in ALL_KINDS} == set(FAMILIES)
    assert all(text_config(tiny_model(kind)).model_type == ALL_KINDS[kind].family for kind in (*KINDS, *MORE_KINDS))


def test_other_heads_on_a_known_base_model_are_known(llama):
    llama.config.num_labels = 2
    assert len(anatomy_of(LlamaForSequenceClassification(llama.config)).layers) == L


def test_an_unknown_family_is_refused_by_name():
    model = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    message = (
        "BertModel (model_type 'bert') is not of a supported family; interpret.anatomy.FAMILIES lists the "
        f"{len(FAMILIES)} that are. "
        "Its layers are probably 'encoder.layer': 1 x BertLayer with attention (BertAttention), intermediate "
        "(BertIntermediate), output (BertOutput). "
        "interpret.describe(model) finds the row of many such models; docs/architecture.md, "
        "'Describing another family', shows how to write one in ten lines"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        anatomy_of(model)


def test_a_part_of_a_model_is_no_model(llama):
    message = "LlamaDecoderLayer (model_type None) is not of a supported family"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}"):
        anatomy_of(llama.model.layers[0])


def test_a_model_laid_out_otherwise_is_refused(llama):
    llama.model.blocks = llama.model._modules.pop("layers")
    message = (
        "LlamaForCausalLM does not have the modules of other llama models: LlamaModel has no attribute `layers`. "
        "Pass the causal language model or its base model"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        anatomy_of(llama)
    llama.model.layers = llama.model._modules.pop("blocks")


@torch.no_grad()
def test_the_embedding_table_holds_what_tokens_are_given(family_model):
    """Gemma 3 scales its embeddings."""
    ids = torch.arange(V)
    torch.testing.assert_close(embedding_table(family_model), family_model.get_input_embeddings()(ids))


def test_the_rows_of_an_empty_cache_are_not_its_columns():
    """A stand-in for the caches of Jamba, Bamba and Granite 4 in transformers 4.57, whose first keys are [B, 0]."""
    cache = SimpleNamespace(key_cache=[torch.empty(3, 0)] * 2, get_seq_length=lambda: cache.key_cache[0].shape[-2])
    assert past_length(cache) == 0
    cache.key_cache = [torch.empty(3, 0), torch.zeros(3, 2, 5, 4)]
    cache.get_seq_length = lambda: cache.key_cache[1].shape[-2]
    assert past_length(cache) == 5


def test_past_length_counts_the_columns_of_a_cache(family_model):
    cache = family_model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    assert past_length(cache) == 3
    assert past_length(None) == 0
    assert past_length((None,) * L) == 0


def test_a_layers_input_is_found_and_replaced_however_it_was_passed():
    hidden, other = torch.zeros(1), torch.ones(1)
    assert layer_input((hidden, 1), {}) is hidden
    assert layer_input((), {"hidden_states": hidden}) is hidden
    assert with_layer_input((hidden, 1), {"a": 2}, other) == ((other, 1), {"a": 2})
    assert with_layer_input((), {"hidden_states": hidden, "a": 2}, other) == ((), {"hidden_states": other, "a": 2})


def test_checkpointing_comes_back_also_when_the_block_raises(llama):
    llama.gradient_checkpointing_enable()
    stack = ExitStack()
    stack.enter_context(keeping_activations(llama.model))
    assert not llama.model.gradient_checkpointing
    stack.__exit__(RuntimeError, RuntimeError("half-way"), None)
    assert llama.model.gradient_checkpointing
    with keeping_activations(nn.Linear(1, 1)):
        pass


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "flash_attention_2"])
def test_patterns_are_computed_whatever_the_attention(llama, attention):
    ids = torch.tensor([[5, 6, 7]])
    with reporting_attention(llama), torch.no_grad():
        own = llama(ids, output_attentions=True).attentions
    llama.config._attn_implementation = attention
    with reporting_attention(llama), torch.no_grad():
        found = llama(ids, output_attentions=True).attentions
    assert llama.config._attn_implementation == attention
    assert len(found) == L
    assert all(map(torch.equal, found, own))


def test_compiling_is_turned_off_where_the_other_settings_stand():
    model, config = SimpleNamespace(device=torch.device("cuda")), GenerationConfig(max_new_tokens=3)
    compiles = hasattr(config, "disable_compile")
    assert uncompiled(model, None) == (None, {"disable_compile": True} if compiles else {})
    given, beside = uncompiled(model, config)
    assert beside == {}
    assert given.max_new_tokens == 3
    assert getattr(given, "disable_compile", True)
    assert not getattr(config, "disable_compile", False)
    assert uncompiled(SimpleNamespace(device=torch.device("cpu")), config) == (config, {})


def test_what_a_configuration_leaves_open_is_the_models_on_current_releases_alone(llama):
    llama.generation_config.pad_token_id = 7
    stands_alone = hasattr(GenerationMixin, "greedy_search")
    assert GenerateSettings(llama, GenerationConfig(), {})["pad_token_id"] == (None if stands_alone else 7)
    assert GenerateSettings(llama, GenerationConfig(pad_token_id=5), {})["pad_token_id"] == 5
    assert GenerateSettings(llama, None, {})["pad_token_id"] == 7
    assert GenerateSettings(llama, None, {"pad_token_id": 3})["pad_token_id"] == 3


def test_a_hook_of_this_thread_is_silent_in_another():
    calls = []
    hook = only_in_this_thread(lambda *event: calls.append(event))
    other = Thread(target=hook, args=("there",))
    other.start()
    other.join()
    hook("here")
    assert calls == [("here",)]


def _forward(input_ids, past_key_values=None, use_cache=False):
    """As before transformers 5.24."""


def _renamed(input_ids, cache=None, use_cache=False, **more):
    """As since then: the old name is deprecated, and not in the signature."""


@pytest.mark.parametrize(("forward", "name"), [(_forward, "past_key_values"), (_renamed, "cache")])
def test_the_cache_of_a_call_is_found_by_its_name_in_any_release(forward, name):
    given = {"past_key_values", name}
    for one in given:
        assert cache_of(signature(forward).bind(1, use_cache=True, **{one: "held"}).arguments) == "held"
    assert cache_of(signature(forward).bind(1, use_cache=True).arguments) is None
    assert with_cache(forward, "held") == {name: "held"}
