import json
import re

import pytest
import torch
import transformers

from interpret.activations._record import SITES, all_names, select_names
from interpret.activations.cache import ActivationCache, activation_cache
from interpret.anatomy import anatomy_of, base_of, head_width
from interpret.errors import InputError, RunError, UnsupportedModelError
from interpret.probing.neurons import count_neurons
from reference.kinds import D, L, V
from reference.tiny import hooks_on, residual_scale, tiny_model
from reference.toy_tokenizers import byte_level

ROWS = [[5, 6, 7, 8, 9], [20, 30], [40, 50, 60]]
H, W = 4, 8


def close(actual, expected):
    # Rounding grows with the numbers that are added, and its size differs between processors.
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * largest)


ATTENDED = [site for site in SITES if site != "mixer_out"]
"""The sites of layers with attention."""


def parts(model):
    """Return (index, layer, module paths) for each layer of a model."""
    anatomy = anatomy_of(model)
    return [(k, block, anatomy.parts) for k, block in enumerate(anatomy.layers)]


def test_every_activation_is_kept_with_the_shape_of_the_table(family_model):
    cache = activation_cache(family_model, None, ROWS, batch_size=2)
    assert cache.names == all_names(family_model) == tuple(cache)
    assert len(cache) == len(ATTENDED) * L + 1
    G = getattr(family_model.config, "num_key_value_heads", H)
    W, F = head_width(family_model.config), count_neurons(family_model, 0)
    tails = dict.fromkeys(ATTENDED, (D,)) | {"q": (H, W), "k": (G, W), "v": (G, W), "heads": (H, W), "neurons": (F,)}
    for name in cache:
        tail = (V,) if name == "logits" else tails[name.partition(".")[0]]
        assert cache[name].shape == (3, 5, *tail), name


def test_logits_and_states_are_those_of_the_stock_model(family_model):
    cache = activation_cache(family_model, None, ROWS)
    for index, row in enumerate(ROWS):
        with torch.no_grad():
            stock = family_model(torch.tensor([row]), output_hidden_states=True)
        close(cache.of("logits", index), stock.logits[0])
        for layer in range(L):
            close(cache.of(f"resid_pre.{layer}", index), stock.hidden_states[layer][0])


@torch.no_grad()
def test_the_residual_stream_is_the_sum_of_attention_and_mlp_outputs(family_model):
    post_norm = anatomy_of(family_model).block == "post_norm"
    cache = activation_cache(family_model, None, ROWS)
    for k, block in enumerate(anatomy_of(family_model).layers):
        middle = cache[f"resid_pre.{k}"] + cache[f"attn_out.{k}"]
        middle = block.self_attn_layer_norm(middle) if post_norm else middle
        end = cache[f"resid_mid.{k}"] + cache[f"mlp_out.{k}"]
        end = block.final_layer_norm(end) if post_norm else end
        close(cache[f"resid_mid.{k}"][cache.mask], middle[cache.mask])
        close(cache[f"resid_post.{k}"][cache.mask], end[cache.mask])


@torch.no_grad()
def test_heads_and_neurons_give_the_outputs_through_their_projections(family_model):
    cache = activation_cache(family_model, None, ROWS)
    for k, block, names in parts(family_model):
        attention = block.get_submodule(names.attention_out)(cache[f"heads.{k}"].flatten(-2))
        mlp = block.get_submodule(names.down)(cache[f"neurons.{k}"])
        if names.attention_after:  # some families apply a norm to the outputs
            attention, mlp = (block.get_submodule(names.attention_after)(attention),
                              block.get_submodule(names.mlp_after)(mlp))  # fmt: skip
        scale = residual_scale(family_model)
        close(scale * attention[cache.mask], cache[f"attn_out.{k}"][cache.mask])
        close(scale * mlp[cache.mask], cache[f"mlp_out.{k}"][cache.mask])


@torch.no_grad()
def test_the_attentions_input_is_the_normed_stream(family_model):
    cache = activation_cache(family_model, None, ROWS)
    post_norm = anatomy_of(family_model).block == "post_norm"
    for k, block, names in parts(family_model):
        stream = cache[f"resid_pre.{k}"]
        normed = stream if post_norm or not names.attention_norm else block.get_submodule(names.attention_norm)(stream)
        close(cache[f"attn_in.{k}"][cache.mask], normed[cache.mask])


@torch.no_grad()
def test_first_tokens_heads_are_their_values(family_model):
    # The first token attends to itself only, so the output of each head is the value of its key-value head.
    cache = activation_cache(family_model, None, ROWS)
    for k in range(L):
        values = cache[f"v.{k}"][:, 0]
        close(cache[f"heads.{k}"][:, 0], values.repeat_interleave(H // values.shape[1], dim=1))


@torch.no_grad()
def test_second_tokens_heads_are_attention_over_queries_and_keys():
    # Without rotary embeddings, the projected queries and keys can be multiplied directly.
    model = tiny_model("gpt2")
    cache = activation_cache(model, None, ROWS)
    for k in range(L):
        query, keys, values = cache[f"q.{k}"][:, 1], cache[f"k.{k}"][:, :2], cache[f"v.{k}"][:, :2]
        weights = torch.softmax(torch.einsum("bhw,bthw->bht", query, keys) / W**0.5, dim=-1)
        close(cache[f"heads.{k}"][:, 1], torch.einsum("bht,bthw->bhw", weights, values))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "opt", "gptj"])
def test_separate_projections_of_the_attentions_input_are_queries_keys_and_values(kind):
    model = tiny_model(kind)
    cache = activation_cache(model, None, ROWS[:1])
    for k, block, names in parts(model):
        for site, path in zip("qkv", names.projections, strict=True):
            close(cache[f"{site}.{k}"].flatten(-2), block.get_submodule(path)(cache[f"attn_in.{k}"]))


@torch.no_grad()
def test_fused_projections_of_neox_are_split_head_by_head():
    model = tiny_model("gpt_neox")
    cache = activation_cache(model, None, ROWS[:1])
    fused = model.gpt_neox.layers[2].attention.query_key_value(cache["attn_in.2"])
    for head in range(H):
        for place, site in enumerate("qkv"):
            start = head * 3 * W + place * W
            close(cache[f"{site}.2"][:, :, head], fused[..., start : start + W])


@pytest.mark.matrix
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_prompt_among_others_is_the_prompt_alone(family_model, batch_size):
    cache = activation_cache(family_model, None, ROWS, batch_size=batch_size)
    assert cache.mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3, [True] * 3 + [False] * 2]
    for index, row in enumerate(ROWS):
        alone = activation_cache(family_model, None, [row])
        for name in cache:
            close(cache.of(name, index), alone[name][0])
            assert cache[name][~cache.mask].abs().sum() == 0, name


@pytest.mark.parametrize("batch_size", [2, 8])
def test_a_cache_on_disk_is_the_one_in_memory(family_model, tmp_path, batch_size):
    memory = activation_cache(family_model, None, ROWS, batch_size=batch_size)
    written = activation_cache(family_model, None, ROWS, batch_size=batch_size, to=tmp_path / "run")
    memory.save(tmp_path / "saved")
    for cache in (written, ActivationCache.load(tmp_path / "run"), ActivationCache.load(tmp_path / "saved")):
        assert (cache.names, cache.token_ids) == (memory.names, memory.token_ids)
        assert all(torch.equal(cache[name], memory[name]) for name in memory)


def test_half_precision_survives_the_disk(llama, tmp_path):
    cache = activation_cache(llama.to(torch.bfloat16), None, ROWS, ["resid_post.1"], to=tmp_path / "run")
    assert cache["resid_post.1"].dtype == torch.bfloat16


def test_a_tensor_of_a_folder_is_read_when_it_is_asked_for(llama, tmp_path):
    activation_cache(llama, None, ROWS, ["q.0", "q.1"], to=tmp_path)
    cache = ActivationCache.load(tmp_path)
    (tmp_path / "batch-00000.safetensors").unlink()
    with pytest.raises(RunError, match="batch-00000.safetensors cannot be read: No such file .*record the cache again"):
        cache["q.0"]


def test_only_what_is_named_is_kept_and_it_is_the_same(family_model):
    everything = activation_cache(family_model, None, ROWS)
    for site in ATTENDED:
        alone = activation_cache(family_model, None, ROWS, f"{site}.1")
        assert alone.names == (f"{site}.1",)
        close(alone[f"{site}.1"], everything[f"{site}.1"])


def test_patterns_choose_names_in_the_models_order(llama):
    assert select_names(llama, ["logits", "q.[13]", "resid_p*.0"]) == (
        "resid_pre.0",
        "resid_post.0",
        "q.1",
        "q.3",
        "logits",
    )
    assert select_names(llama, "*") == all_names(llama)


def test_layers_stand_in_natural_order():
    model = tiny_model("gpt2")
    order = [name for name in all_names(model) if name.startswith("v.")]
    assert order == [f"v.{layer}" for layer in range(L)]


def test_the_head_is_run_only_where_logits_are_asked_for(llama):
    calls = []
    handle = llama.lm_head.register_forward_hook(lambda *event: calls.append(1))
    activation_cache(llama, None, ROWS, "resid_post.*")
    assert not calls
    activation_cache(llama, None, ROWS, "logits")
    assert calls
    handle.remove()


def test_the_base_model_has_everything_but_logits(family_model):
    whole = activation_cache(family_model, None, ROWS)
    base = activation_cache(base_of(family_model), None, ROWS)
    assert base.names == whole.names[:-1]
    assert all(torch.equal(base[name], whole[name]) for name in base)


def test_texts_are_read_as_the_tokenizer_reads_them():
    tokenizer = byte_level()
    model = tiny_model("gpt2")
    model.resize_token_embeddings(len(tokenizer))
    texts = ["Paris is in", "pizza"]
    cache = activation_cache(model, tokenizer, texts, "logits")
    assert cache.token_ids == tuple(tuple(tokenizer(text).input_ids) for text in texts)
    assert torch.equal(cache["logits"], activation_cache(model, None, cache.token_ids, "logits")["logits"])


def test_a_model_in_training_is_run_without_dropout_and_stays_in_training(gpt2):
    expected = activation_cache(gpt2, None, ROWS, "logits")["logits"]
    gpt2.train()
    gpt2.transformer.drop.p = 0.5
    assert torch.equal(activation_cache(gpt2, None, ROWS, "logits")["logits"], expected)
    assert gpt2.training
    assert gpt2.transformer.drop.training


def test_no_hook_is_left_after_an_exception(family_model, tmp_path):
    with pytest.raises(IndexError):
        activation_cache(family_model, None, [[5, 1000]])
    assert hooks_on(family_model) == 0


def test_an_interrupted_folder_is_not_taken_for_a_cache(llama, tmp_path):
    with pytest.raises(IndexError):
        activation_cache(llama, None, [[5, 6], [5, 1000]], batch_size=1, to=tmp_path)
    assert (tmp_path / "batch-00000.safetensors").is_file()
    message = f"{tmp_path} holds no finished activation cache: its cache.json is missing or unreadable"
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        ActivationCache.load(tmp_path)


NAMES = "resid_pre, attn_in, q, k, v, heads, attn_out, mixer_out, resid_mid, mlp_in, neurons, mlp_out, "
NAMES += "resid_post, logits"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("neuron.1", f"unknown activation 'neuron'; did you mean 'neurons'? Allowed: {NAMES}"),
        (
            ["q.0", "v.4"],
            "this model has no activation 'v.4': a name is a site and a layer from 0 to 3, such as 'mlp_out.0', "
            "or logits",
        ),
        (
            "hook_*",
            "this model has no activation 'hook_*': a name is a site and a layer from 0 to 3, such as 'mlp_out.0', "
            "or logits",
        ),
        ([], 'names is empty: name at least one activation, such as "resid_post.0", or "*" for all'),
    ],
)
def test_a_name_that_does_not_exist_is_refused(llama, names, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        activation_cache(llama, None, ROWS, names)


def test_a_base_model_says_that_it_has_no_logits(llama):
    message = (
        "this model has no activation 'logits': a name is a site and a layer from 0 to 3, such as 'mlp_out.0'; "
        "a base model has no logits"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        activation_cache(llama.model, None, ROWS, "logits")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts: give a list of at least one text, or of rows of token ids"),
        ("Paris", "prompts: give a list of at least one text, or of rows of token ids"),
        (["Paris"], "prompts[0] is a text: give the tokenizer, or token ids"),
        ([[5], []], "prompts[1] has no tokens: every prompt needs at least one"),
        ([[5] * 65], "prompts[0] has 65 tokens; this model reads at most 64"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(llama, prompts, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        activation_cache(llama, None, prompts)


def test_a_batch_size_below_one_is_refused(llama):
    with pytest.raises(InputError, match=r"^batch_size is 0: give at least 1$"):
        activation_cache(llama, None, ROWS, batch_size=0)


def test_what_is_not_held_is_named(llama):
    cache = activation_cache(llama, None, ROWS, "q.*")
    assert "q.0" in cache
    assert "k.0" not in cache
    with pytest.raises(InputError, match=r"^unknown activation 'q'; .*Allowed: q\.0, q\.1, q\.2, q\.3$"):
        cache["q"]
    with pytest.raises(InputError, match=r"^prompt 3 does not exist; this cache has prompts 0 to 2$"):
        cache.of("q.0", 3)


def test_a_folder_with_something_in_it_is_refused_before_the_model_runs(llama, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    message = f"{tmp_path} is not an empty folder: give a new or an empty folder for the cache"
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        activation_cache(llama, None, ROWS, to=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_cache_of_another_format_is_refused(llama, tmp_path):
    activation_cache(llama, None, ROWS, "q.0", to=tmp_path)
    index = tmp_path / "cache.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 2}))
    message = f"{index}: unknown format 2; this version reads format 1"
    with pytest.raises(RunError, match=f"^{re.escape(message)}$"):
        ActivationCache.load(tmp_path)


@pytest.mark.skipif(hasattr(transformers, "Cache"), reason="later releases than 4.34.0 have no pretraining_tp")
def test_parts_that_are_not_called_are_named(llama):
    llama.config.pretraining_tp = 2
    for block in llama.model.layers:
        block.self_attn.config.pretraining_tp = 2
        block.self_attn.pretraining_tp = 2
    message = (
        "LlamaForCausalLM does not call the module 'self_attn.o_proj' of layer 0, which the row of the family 'llama' "
        "names; was it loaded with pretraining_tp above 1?"
    )
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        activation_cache(llama, None, ROWS, "q.*")
