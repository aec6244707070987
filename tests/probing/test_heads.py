"""Heads, compared with the model's own ``output_attentions``, plain matrix products and plain loops."""

import math
import re

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interpret.anatomy import anatomy_of
from interpret.errors import InputError, UnsupportedModelError
from interpret.probing.head_edits import ablated_heads, merged_heads, patched_heads
from interpret.probing.heads import Attended, attention_patterns, head_outputs, induction_scores, top_attended
from interpret.prompts.batches import pad, token_columns
from reference.kinds import D, L, V
from reference.tiny import eager, hooks_on
from reference.toy_tokenizers import word_tokenizer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
OTHER = torch.tensor([[11, 12, 13, 14, 15], [21, 31, 41, 51, 61]])
H, W = 4, D // 4


def logits(model, ids=IDS, **arguments):
    with torch.no_grad():
        return model(ids, **arguments).logits


def said_by_heads(model, layer, ids=IDS):
    """Return the input of the output projection in a plain pass, [B, T, H, W]."""
    seen = []
    module = anatomy_of(model).layers[layer].get_submodule(anatomy_of(model).parts.attention_out)
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    logits(model, ids)
    handle.remove()
    return seen[0].view(*ids.shape, H, -1)


def test_patterns_are_the_models_own(family_model):
    patterns = attention_patterns(family_model, IDS)
    with torch.no_grad():
        own = eager(family_model)(IDS, output_attentions=True).attentions
    assert list(patterns) == list(range(L))
    for layer in range(L):
        assert torch.equal(patterns[layer], own[layer])
        torch.testing.assert_close(patterns[layer].sum(-1), torch.ones(2, H, 5))
    assert hooks_on(family_model) == 0


@pytest.mark.parametrize("ids", ["w1 w2", [[3, 4]], IDS[0]])
def test_ids_that_are_not_rows_are_refused(family_model, ids):
    with pytest.raises(InputError, match=r"^input_ids: give a tensor \[B, T\], such as "):
        attention_patterns(family_model, ids)


def test_only_the_layers_named_come_back(family_model):
    patterns = attention_patterns(family_model, IDS, layers=[2])
    assert list(patterns) == [2]
    assert torch.equal(patterns[2], attention_patterns(family_model, IDS)[2])


def test_padding_attends_to_nothing_and_changes_nothing(family_model):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    patterns = attention_patterns(family_model, IDS, mask)
    alone = attention_patterns(family_model, IDS[:1, :3])
    for layer in range(L):
        torch.testing.assert_close(patterns[layer][:1, :, :3, :3], alone[layer], **CLOSE)
        assert not patterns[layer][0, :, 3:].any()
        assert not patterns[layer][0, :, :, 3:].any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_read_alike_on_either_side_of_its_padding(family_model, side):
    batch = pad([[5, 6, 7], [20, 30, 40, 50, 60]], 0, side=side)
    patterns = attention_patterns(family_model, batch.input_ids, batch.attention_mask)
    outputs = head_outputs(family_model, batch.input_ids, batch.attention_mask, layers=range(L))
    alone = attention_patterns(family_model, IDS[:1, :3])
    outputs_alone = head_outputs(family_model, IDS[:1, :3], layers=range(L))
    at = token_columns(batch.attention_mask)[0, :3]
    for layer in range(L):
        torch.testing.assert_close(patterns[layer][:1, :, at[:, None], at], alone[layer], **CLOSE)
        torch.testing.assert_close(outputs[layer][:1, at], outputs_alone[layer], **CLOSE)
        padding = batch.attention_mask[0] == 0
        assert not patterns[layer][0, :, padding].any()
        assert patterns[layer][0, :, at][..., padding].max() < 1e-6


def normed_input(model, layer):
    """Return the input of the attention in a plain pass, [B, T, D]."""
    seen = []
    module = anatomy_of(model).layers[layer].get_submodule(anatomy_of(model).parts.attention_norm)
    handle = module.register_forward_hook(lambda _, args, output: seen.append(output.detach()))
    logits(model)
    handle.remove()
    return seen[0]


def causal_softmax(scores):
    seen = torch.ones(5, 5).tril().bool()
    return torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1)


@pytest.mark.parametrize("layer", [0, 3])
def test_patterns_of_gpt2_are_plain_products_of_queries_and_keys(gpt2, layer):
    x, packed = normed_input(gpt2, layer), gpt2.transformer.h[layer].attn.c_attn
    pattern = attention_patterns(gpt2, IDS)[layer]
    for head in range(H):
        own = slice(head * W, (head + 1) * W)
        queries = x @ packed.weight[:, :D][:, own] + packed.bias[:D][own]
        keys = x @ packed.weight[:, D : 2 * D][:, own] + packed.bias[D : 2 * D][own]
        expected = causal_softmax(queries @ keys.transpose(1, 2) / math.sqrt(W))
        torch.testing.assert_close(pattern[:, head], expected.detach(), **CLOSE)


@pytest.mark.parametrize("layer", [0, 3])
def test_patterns_of_llama_are_products_of_rotated_queries_and_shared_keys(llama, layer):
    x, attention = normed_input(llama, layer), llama.model.layers[layer].self_attn
    pattern = attention_patterns(llama, IDS)[layer]
    angles = torch.arange(5)[:, None] * 10_000.0 ** (-torch.arange(0, W, 2) / W)  # [T, W / 2]

    def rotated(value):
        left, right = value[..., : W // 2], value[..., W // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    for head in range(H):
        shared = head // 2  # two heads share keys
        queries = rotated(x @ attention.q_proj.weight[head * W : (head + 1) * W].t())
        keys = rotated(x @ attention.k_proj.weight[shared * W : (shared + 1) * W].t())
        expected = causal_softmax(queries @ keys.transpose(1, 2) / math.sqrt(W))
        torch.testing.assert_close(pattern[:, head], expected.detach(), **CLOSE)


def test_the_most_attended_tokens_are_those_of_the_pattern(llama):
    found = top_attended(llama, word_tokenizer(), "w5 w6 w7 w8 w9", [(2, 1), (0, 3)], position=-2, k=2)
    for index, (layer, head) in enumerate([(2, 1), (0, 3)]):
        row = attention_patterns(llama, IDS)[layer][0, head, 3].tolist()
        order = sorted(range(5), key=lambda at: -row[at])
        texts = ["w5", " w6", " w7", " w8", " w9"]
        expected = [
            Attended(layer, head, 3, rank, order[rank - 1], texts[order[rank - 1]], row[order[rank - 1]])
            for rank in (1, 2)
        ]
        assert found[2 * index : 2 * index + 2] == expected


def test_no_more_tokens_are_named_than_are_seen(llama):
    assert len(top_attended(llama, word_tokenizer(), "w5 w6 w7", [(0, 0)], position=1, k=9)) == 2


def test_outputs_of_heads_are_what_the_output_projection_reads(family_model):
    assert torch.equal(head_outputs(family_model, IDS, layers=[1])[1], said_by_heads(family_model, 1))


def test_ablated_heads_output_zero_and_others_are_unchanged(family_model):
    stock = logits(family_model)
    expected = said_by_heads(family_model, 1)
    expected[:, :, [0, 2]] = 0
    with ablated_heads(family_model, [(1, 0), (1, 2)]):
        assert torch.equal(said_by_heads(family_model, 1), expected)
        assert not torch.allclose(logits(family_model), stock, atol=1e-3)
    assert torch.equal(logits(family_model), stock)
    assert hooks_on(family_model) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_ablating_a_head_is_zeroing_its_part_of_the_projection(kind, request):
    model = request.getfixturevalue(kind)
    with ablated_heads(model, [(2, 3)]):
        ablated = logits(model)
    block = anatomy_of(model).layers[2]
    module = block.get_submodule(anatomy_of(model).parts.attention_out)
    before = module.weight.detach().clone()
    part = module.weight.data if isinstance(module, Conv1D) else module.weight.data.t()
    part[3 * W :] = 0
    zeroed = logits(model)
    module.weight.data.copy_(before)
    torch.testing.assert_close(ablated, zeroed, **CLOSE)


def test_a_mean_ablated_head_outputs_its_mean(family_model):
    expected = said_by_heads(family_model, 1)
    expected[:, :, 2] = said_by_heads(family_model, 1, OTHER)[:, :, 2].mean(dim=(0, 1))
    with ablated_heads(family_model, [(1, 2)], mean_of=OTHER):
        torch.testing.assert_close(said_by_heads(family_model, 1), expected)
    assert hooks_on(family_model) == 0


def test_patched_heads_have_the_outputs_of_the_source(family_model):
    expected = said_by_heads(family_model, 1)
    expected[:, 1:3, [1, 3]] = said_by_heads(family_model, 1, OTHER)[:, 1:3, [1, 3]]
    stock = logits(family_model)
    with patched_heads(family_model, [(1, 1), (1, 3)], OTHER, columns=[1, 2]):
        assert torch.equal(said_by_heads(family_model, 1), expected)
        assert not torch.allclose(logits(family_model), stock, atol=1e-3)
    assert torch.equal(logits(family_model), stock)
    assert hooks_on(family_model) == 0


def test_patching_a_run_into_itself_changes_nothing(family_model):
    stock = logits(family_model)
    with patched_heads(family_model, [(layer, head) for layer in range(L) for head in range(H)], IDS):
        assert torch.equal(logits(family_model), stock)


def test_one_source_row_serves_all_rows(gpt2):
    with patched_heads(gpt2, [(1, 1)], OTHER[:1]):
        both = logits(gpt2)
    with patched_heads(gpt2, [(1, 1)], OTHER[:1].expand(2, -1)):
        torch.testing.assert_close(logits(gpt2), both, **CLOSE)


def test_patching_counts_columns_through_the_cache(llama):
    with patched_heads(llama, [(1, 1)], OTHER[:1], columns=[1, 4]), torch.no_grad():
        whole = logits(llama, IDS[:1])[:, -1]
        past = llama(IDS[:1, :4], use_cache=True).past_key_values
        torch.testing.assert_close(logits(llama, IDS[:1, 4:], past_key_values=past)[:, -1], whole, **CLOSE)


def test_merged_heads_output_the_blend_and_others_are_unchanged(family_model):
    stock, said = logits(family_model), said_by_heads(family_model, 1)
    expected = said.clone()
    expected[:, :, 0] = 0.25 * said[:, :, 0] + 0.75 * said[:, :, 2]
    expected[:, :, 2] = said[:, :, 0]  # as it was before the other merge
    with merged_heads(family_model, {(1, 0): (2, 0.75), (1, 2): (0, 1.0), (3, 1): (3, 0.5)}):
        torch.testing.assert_close(said_by_heads(family_model, 1), expected, **CLOSE)
        assert not torch.allclose(logits(family_model), stock, atol=1e-3)
    assert torch.equal(logits(family_model), stock)
    assert hooks_on(family_model) == 0


def test_merging_by_nothing_or_with_itself_changes_nothing(family_model):
    stock = logits(family_model)
    with merged_heads(family_model, {(1, 0): (2, 0.0), (2, 3): (3, 0.5)}):
        assert torch.equal(logits(family_model), stock)


def test_a_head_merged_with_alpha_1_has_the_output_of_the_other(gpt2):
    """The same as using the other head's slice of the output projection for both."""
    with merged_heads(gpt2, {(2, 3): (1, 1.0)}):
        merged = logits(gpt2)
    projection = gpt2.transformer.h[2].attn.c_proj
    before = projection.weight.detach().clone()
    projection.weight.data[W : 2 * W] += before[3 * W :]
    projection.weight.data[3 * W :] = 0
    expected = logits(gpt2)
    projection.weight.data.copy_(before)
    torch.testing.assert_close(merged, expected, **CLOSE)


def test_induction_scores_are_means_over_the_repetition(family_model):
    scores = induction_scores(family_model, n_tokens=6, n_sequences=3, seed=4)
    seen = []
    embedding = family_model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    induction_scores(family_model, n_tokens=6, n_sequences=3, seed=4)
    handle.remove()
    ids = torch.cat(seen)  # each sequence is read once
    assert ids.shape == (3, 13)
    assert torch.equal(ids[:, 1:7], ids[:, 7:])
    assert (ids[:, 0] == 1).all()
    assert all(len(set(row[1:7].tolist()) - {0, 1}) == 6 for row in ids)
    with torch.no_grad():
        attentions = eager(family_model)(ids, output_attentions=True).attentions
    for layer in range(L):
        for head in range(H):
            probabilities = []
            for b, row in enumerate(ids.tolist()):
                for q in range(7, 13):
                    before = row.index(row[q], 1)
                    probabilities.append(attentions[layer][b, head, q, before + 1].item())
            assert scores[layer, head].item() == pytest.approx(sum(probabilities) / 18, rel=1e-4)


def test_induction_scores_repeat_with_the_seed(gpt2):
    first = induction_scores(gpt2, n_tokens=6, seed=1)
    assert torch.equal(first, induction_scores(gpt2, n_tokens=6, seed=1))
    assert not torch.equal(first, induction_scores(gpt2, n_tokens=6, seed=2))


def test_a_head_built_for_induction_scores_one(gpt2):
    """If 6 tokens are repeated, a head that attends 5 tokens back, by positions only, is an induction head."""
    block, positions = gpt2.transformer.h[0], gpt2.transformer.wpe.weight
    kept = {name: value.clone() for name, value in gpt2.state_dict().items()}
    angles = torch.arange(64)[:, None] * torch.tensor([1.0, 0.37, 0.11, 0.023])
    with torch.no_grad():
        gpt2.transformer.wte.weight.zero_()
        positions.zero_()
        positions[:, :4], positions[:, 4:8] = angles.cos(), angles.sin()
        positions[:, 8:16] = -positions[:, :8]  # mean 0 and norm alike: the norm changes only the scale
        block.ln_1.weight.fill_(1)
        block.ln_1.bias.zero_()
        packed = torch.zeros(D, 3 * D)
        back = (5 * torch.tensor([1.0, 0.37, 0.11, 0.023])).diag_embed()
        cos, sin = back.diagonal().cos().diag(), back.diagonal().sin().diag()
        packed[:4, :4], packed[4:8, :4] = cos, sin
        packed[:4, 4:8], packed[4:8, 4:8] = -sin, cos
        packed[:8, D : D + 8] = 100 * torch.eye(8)
        block.attn.c_attn.weight.copy_(packed)
        block.attn.c_attn.bias.zero_()
    scores = induction_scores(gpt2, n_tokens=6)
    gpt2.load_state_dict(kept)
    assert scores[0, 0] > 0.9
    assert scores[0, 1:].max() < 0.2


def test_attention_without_probabilities_is_refused(gpt2):
    attention = gpt2.transformer.h[1].attn
    stock = attention.forward
    attention.forward = lambda *args, **kwargs: (stock(*args, **kwargs)[0], None)
    message = "GPT2Attention does not return its probabilities: open the model with eager attention"
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}$"):
        attention_patterns(gpt2, IDS)
    del attention.forward
    assert hooks_on(gpt2) == 0


def test_nothing_is_left_after_an_exception_in_the_block(llama):
    def fail(context):
        with context:
            assert hooks_on(llama) == 2
            llama(torch.tensor([[V]]))

    for context in (
        ablated_heads(llama, [(1, 1)]),
        patched_heads(llama, [(1, 1)], IDS),
        merged_heads(llama, {(1, 1): (0, 0.5)}),
    ):
        with pytest.raises(IndexError):
            fail(context)
        assert hooks_on(llama) == 0


def test_a_model_in_training_mode_stays_so(gpt2):
    expected = attention_patterns(gpt2, IDS)[1]
    gpt2.train()
    for module in gpt2.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    assert torch.equal(attention_patterns(gpt2, IDS)[1], expected)
    assert gpt2.training


def enter(context):
    with context:
        pass


def run_in(model, context):
    with context:
        logits(model)


NO_LAYER, NO_HEAD = (
    "layer 4 does not exist; this model has layers 0 to 3",
    "head 4 does not exist; this model has heads 0 to 3",
)
ERRORS = [
    (lambda m: attention_patterns(m, IDS, layers=[4]), NO_LAYER),
    (lambda m: head_outputs(m, IDS, layers=[4]), NO_LAYER),
    (lambda m: enter(ablated_heads(m, [(4, 0)])), NO_LAYER),
    (lambda m: enter(ablated_heads(m, [(0, 4)])), NO_HEAD),
    (lambda m: enter(ablated_heads(m, [])), "heads is empty: name at least one, as (layer, head)"),
    (lambda m: enter(patched_heads(m, [(0, 4)], IDS)), NO_HEAD),
    (
        lambda m: enter(patched_heads(m, [(0, 0)], IDS, columns=[5])),
        "column 5 does not exist; the source has columns 0 to 4",
    ),
    (
        lambda m: run_in(m, patched_heads(m, [(0, 0)], torch.cat([IDS, IDS]))),
        "the source has 4 rows and the forward pass 2: give one row, or as many",
    ),
    (lambda m: enter(merged_heads(m, {(4, 0): (1, 0.5)})), NO_LAYER),
    (lambda m: enter(merged_heads(m, {(0, 4): (1, 0.5)})), NO_HEAD),
    (lambda m: enter(merged_heads(m, {(0, 1): (4, 0.5)})), NO_HEAD),
    (lambda m: enter(merged_heads(m, {(0, 1): (2, 1.5)})), "alpha of layer 0, head 1 is 1.5: give 0 to 1"),
    (lambda m: enter(merged_heads(m, {})), "heads is empty: name at least one, as (layer, head)"),
    (lambda m: top_attended(m, word_tokenizer(), "w5", [(0, 4)]), NO_HEAD),
    (
        lambda m: top_attended(m, word_tokenizer(), "w5", [(0, 0)], position=1),
        "'w5' has no token 1: it is 1 token long",
    ),
    (lambda m: top_attended(m, word_tokenizer(), "w5", [(0, 0)], k=0), "k is 0: ask for at least one token"),
    (
        lambda m: top_attended(m, word_tokenizer(), "w5", [(0, 0)]),
        "'w5' is a single token, which can attend only to itself: give a longer text",
    ),
    (
        lambda m: induction_scores(m, n_tokens=96),
        "4 sequences of 96 tokens: give at least 1 sequence, and 2 to 95 tokens",
    ),
    (
        lambda m: induction_scores(m, n_tokens=40),
        "n_tokens is 40: the repeated sequence has 81 tokens; this model reads at most 64",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_bad_input_is_refused(llama, call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(llama)
    assert hooks_on(llama) == 0
