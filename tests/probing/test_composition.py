"""Weights and composition of heads, compared with plain products of slices of the weights."""

import re

import pytest
import torch
from torch import nn

from interpret.anatomy import anatomy_of, head_width
from interpret.errors import InputError
from interpret.probing.composition import composition_scores, head_weights, relational_subspaces, strongest_compositions
from reference.kinds import D, L

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
IDS = torch.tensor([[5, 6, 7, 8, 9], [20, 30, 40, 50, 60]])
H = 4


def plain_heads(model, layer):
    """Yield each head's (queries, keys, values [W, D], output [D, W]), by slices of the weights."""
    block, scale, W = anatomy_of(model).layers[layer], 1.0, head_width(model.config)
    if model.config.model_type == "olmo2":
        scale = 1.0  # the attention reads the residual stream without a norm
    elif model.config.model_type != "opt" or model.config.do_layer_norm_before:
        scale = block.get_submodule(anatomy_of(model).parts.attention_norm).weight
        scale = 1 + scale if "gemma" in model.config.model_type else scale
    for head in range(H):
        own = slice(head * W, (head + 1) * W)
        if model.config.model_type == "gpt2":
            packed = block.attn.c_attn.weight.t()
            parts = [packed[i * D : (i + 1) * D][own] for i in range(3)]
            output = block.attn.c_proj.weight.t()
        elif model.config.model_type == "gpt_neox":
            packed = block.attention.query_key_value.weight
            parts = [packed[head * 3 * W + i * W : head * 3 * W + (i + 1) * W] for i in range(3)]
            output = block.attention.dense.weight
        elif model.config.model_type == "phi3":
            queries, keys, values = block.self_attn.qkv_proj.weight.split([H * W, 2 * W, 2 * W])
            shared = slice(head // 2 * W, (head // 2 + 1) * W)
            parts, output = [queries[own], keys[shared], values[shared]], block.self_attn.o_proj.weight
        else:
            attention = block.get_submodule(anatomy_of(model).family.attention)
            groups = H // (attention.k_proj.weight.shape[0] // W)
            shared = slice(head // groups * W, (head // groups + 1) * W)
            parts = [attention.q_proj.weight[own], attention.k_proj.weight[shared], attention.v_proj.weight[shared]]
            output = attention.o_proj.weight if hasattr(attention, "o_proj") else attention.out_proj.weight
        yield (*(part * scale for part in parts), output[:, own])


def test_circuits_of_heads_are_slices_of_the_weights(family_model):
    for layer in (0, 3):
        weights = head_weights(family_model, layer)
        for head, (queries, keys, values, output) in enumerate(plain_heads(family_model, layer)):
            torch.testing.assert_close(weights.qk(head), (queries.t() @ keys).detach(), **CLOSE)
            torch.testing.assert_close(weights.ov(head), (output @ values).detach(), **CLOSE)


def test_relational_subspaces_are_the_svd_of_each_qk(family_model):
    width = head_width(family_model.config)
    found = relational_subspaces(family_model, 2, k=width)
    top = relational_subspaces(family_model, 2, k=3)
    assert (top.values.shape, top.queries.shape, top.keys.shape) == ((H, 3), (H, D, 3), (H, D, 3))
    for head, (queries, keys, _, _) in enumerate(plain_heads(family_model, 2)):
        qk = (queries.t() @ keys).detach()
        left, values, right = torch.linalg.svd(qk)
        torch.testing.assert_close(found.values[head], values[:width], **CLOSE)
        torch.testing.assert_close(top.values[head], values[:3], **CLOSE)
        for own, plain in ((top.queries[head], left), (top.keys[head], right.t())):
            torch.testing.assert_close((own * plain[:, :3]).sum(0).abs(), torch.ones(3), **CLOSE)
        restored = found.queries[head] @ found.values[head].diag() @ found.keys[head].t()
        torch.testing.assert_close(restored, qk, **CLOSE)
        best = top.queries[head] @ top.values[head].diag() @ top.keys[head].t()
        torch.testing.assert_close((qk - best).norm(), values[3:].norm(), **CLOSE)


def test_norms_without_weights_scale_nothing(gpt2):
    plain = nn.LayerNorm(D, elementwise_affine=False)
    ones = nn.LayerNorm(D)
    block, own = gpt2.transformer.h[1], gpt2.transformer.h[1].ln_1
    block.ln_1 = ones
    expected = head_weights(gpt2, 1).queries
    block.ln_1 = plain
    assert torch.equal(head_weights(gpt2, 1).queries, expected)
    block.ln_1 = own
    assert not torch.equal(head_weights(gpt2, 1).queries, expected)


def test_values_carried_by_ov_are_what_the_attention_writes(llama):
    """At the first token, which attends only to itself, rotary embeddings do not matter."""
    weights, x = head_weights(llama, 1), llama.model.layers[1].input_layernorm
    seen = []
    handles = [
        x.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        llama.model.layers[1].self_attn.register_forward_hook(lambda _, args, output: seen.append(output[0])),
    ]
    llama(IDS)
    for handle in handles:
        handle.remove()
    unscaled = seen[0] * torch.rsqrt(seen[0].pow(2).mean(-1, keepdim=True) + x.variance_epsilon)
    written = sum(unscaled[:, 0] @ weights.ov(head).t() for head in range(H))
    torch.testing.assert_close(written, seen[1][:, 0], **CLOSE)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["query", "key", "value"])
def test_composition_is_the_ratio_of_norms_of_whole_matrices(family_model, kind):
    scores = composition_scores(family_model, kind)
    assert scores.shape == (L, H, L, H)
    plain = [list(plain_heads(family_model, layer)) for layer in range(L)]
    for early in range(L):
        for late in range(L):
            if early >= late:
                assert scores[early, :, late].isnan().all()
                continue
            for writer in range(H):
                for reader in range(H):
                    _, _, values, output = plain[early][writer]
                    q, k, v, o = plain[late][reader]
                    written = output @ values
                    read = {"query": k.t() @ q, "key": q.t() @ k, "value": o @ v}[kind]
                    expected = (read @ written).norm() / (read.norm() * written.norm())
                    assert scores[early, writer, late, reader].item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_strongest_pairs_come_first(gpt2):
    scores = composition_scores(gpt2, "key")
    found = strongest_compositions(scores, "key", k=5)
    assert [pair.score for pair in found] == sorted(scores[scores.isfinite()].tolist(), reverse=True)[:5]
    for pair in found:
        place = scores[pair.writing_layer, pair.writing_head, pair.reading_layer, pair.reading_head]
        assert (place.item(), pair.kind) == (pair.score, "key")
    assert len(strongest_compositions(scores, "key", k=10**6)) == 6 * H * H


ERRORS = [
    (lambda m: head_weights(m, 4), "layer 4 does not exist; this model has layers 0 to 3"),
    (lambda m: relational_subspaces(m, 4), "layer 4 does not exist; this model has layers 0 to 3"),
    (lambda m: relational_subspaces(m, 0, k=0), "k is 0; W_QK of a head has rank 8, so give 1 to 8"),
    (lambda m: relational_subspaces(m, 0, k=9), "k is 9; W_QK of a head has rank 8, so give 1 to 8"),
    (
        lambda m: composition_scores(m, "keys"),
        "unknown kind 'keys'; did you mean 'key'? Allowed: query, key, value",
    ),
    (lambda m: strongest_compositions(torch.ones(1, 1, 1, 1), "key", k=0), "k is 0: ask for at least one pair"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_bad_input_is_refused(llama, call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(llama)
