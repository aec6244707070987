"""What heads write, read and move, compared with plain products and sums over whole matrices."""

import re

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of, head_width, reporting_attention
from interpret.errors import InputError
from interpret.probing.composition import composition_scores, head_weights
from interpret.probing.head_flow import information_flow, reading_heads, writing_heads
from reference.kinds import D, L
from reference.tiny import hooks_on, residual_scale, tiny_model
from reference.toy_tokenizers import word_tokenizer

ROWS = [[5, 6, 7, 8, 9], [20, 30], [40, 50, 60]]
PLACES = [(prompt, position) for prompt, row in enumerate(ROWS) for position in range(len(row))]
TEXT, IDS = "w5 w6 w7 w8 w9", torch.tensor([[5, 6, 7, 8, 9]])
H, W = 4, D // 4  # of Llama and GPT-2; W of others is head_width
DIRECTION = torch.randn(D, generator=torch.Generator().manual_seed(3))
KIND_NAMES = ["query", "key", "value"]


def output_weight(model, layer):
    """Return W_O of all heads, [D, H * W]."""
    module = anatomy_of(model).layers[layer].get_submodule(anatomy_of(model).family.parts.attention_out)
    return (module.weight.t() if isinstance(module, Conv1D) else module.weight).detach().double()


def scores_of(frame):
    """Return the scores as [L, H], after checking that there is one row per head, the largest first."""
    assert list(frame.columns) == ["rank", "layer", "head", "score"]
    assert frame["rank"].tolist() == list(range(1, L * H + 1))
    assert frame.score.is_monotonic_decreasing
    assert set(zip(frame.layer, frame["head"], strict=True)) == {(k, h) for k in range(L) for h in range(H)}
    return torch.tensor(frame.sort_values(["layer", "head"]).score.to_numpy()).view(L, H)


@pytest.mark.matrix
@pytest.mark.parametrize("direction", [None, DIRECTION])
@pytest.mark.parametrize("positions", [None, (-1,)])
def test_what_heads_write_is_their_part_of_the_projection(family_model, direction, positions):
    cache = activation_cache(family_model, None, ROWS)
    W = head_width(family_model.config)
    places = PLACES if positions is None else [(prompt, len(row) - 1) for prompt, row in enumerate(ROWS)]
    scores = scores_of(writing_heads(family_model, cache, direction=direction, positions=positions))
    for layer in range(L):
        weight = output_weight(family_model, layer)
        for head in range(H):
            sizes = []
            for prompt, position in places:
                said = cache[f"heads.{layer}"][prompt, position, head].double()
                write = weight[:, head * W : (head + 1) * W] @ said * residual_scale(family_model)
                sizes.append(
                    write.norm() if direction is None else (write @ direction.double()).abs() / DIRECTION.norm()
                )
            assert scores[layer, head].item() == pytest.approx(torch.stack(sizes).mean().item(), rel=1e-4)


def cohere(model):
    return model.config.model_type == "cohere"


def normed(model, layer, stream):
    """Return the stream after the norm before the attention, without the weights of the norm."""
    norm = anatomy_of(model).layers[layer].get_submodule(anatomy_of(model).family.parts.attention_norm)
    if anatomy_of(model).block == "post_norm" or not anatomy_of(model).parts.attention_norm:
        return stream
    if type(norm).__name__.endswith("LayerNorm"):
        return nn.functional.layer_norm(stream, (D,), eps=model.config.layer_norm_eps if cohere(model) else norm.eps)
    return stream * torch.rsqrt(stream.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)


@pytest.mark.matrix
@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("direction", [None, DIRECTION])
def test_what_heads_read_is_a_ratio_of_norms_of_whole_matrices(family_model, kind, direction):
    cache = activation_cache(family_model, None, ROWS)
    scores = scores_of(reading_heads(family_model, cache, kind, direction=direction, positions=None))
    centred = (
        type(normed_by(family_model)).__name__.endswith("LayerNorm") and anatomy_of(family_model).block != "post_norm"
    )
    for layer in range(L):
        weights = head_weights(family_model, layer)
        for head in range(H):
            reads = {"query": weights.qk(head).t(), "key": weights.qk(head), "value": weights.ov(head)}[kind].double()
            ratios = []
            for prompt, position in PLACES:
                x = normed(family_model, layer, cache[f"resid_pre.{layer}"][prompt, position].double())
                seen = x
                if direction is not None:
                    d = direction.double() - direction.double().mean() if centred else direction.double()
                    seen = (x @ d) / (d @ d) * d
                ratios.append((reads @ seen).norm() / (reads.norm() * x.norm()))
            assert scores[layer, head].item() == pytest.approx(torch.stack(ratios).mean().item(), rel=1e-4)


def normed_by(model):
    return anatomy_of(model).layers[0].get_submodule(anatomy_of(model).family.parts.attention_norm)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_head_reads_a_stream_as_it_reads_one_column_of_what_another_writes(llama, kind):
    """Composition squared is the mean of the columns' squared scores, weighted by the columns' squared norms."""
    written = head_weights(llama, 0).ov(1)
    cache = activation_cache(llama, None, [list(range(1, D + 1))])
    columns = {f"resid_pre.{layer}": written.t()[None] for layer in range(L)}
    cache = type(cache)(cache.token_ids, tuple(columns), columns.__getitem__)
    total = torch.zeros(L, H, dtype=torch.double)
    for column in range(D):
        scores = scores_of(reading_heads(llama, cache, kind, positions=[column]))
        total += scores.square() * written[:, column].double().square().sum()
    expected = composition_scores(llama, kind)[0, 1, 2].double()
    torch.testing.assert_close((total / written.double().square().sum()).sqrt()[2], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_reading_does_not_depend_on_how_a_circuits_weights_are_shared_out(kind):
    model = tiny_model("llama")
    cache = activation_cache(model, None, ROWS)
    before = scores_of(reading_heads(model, cache, kind))
    attention = model.model.layers[2].self_attn
    with torch.no_grad():
        attention.q_proj.weight *= 4
        attention.k_proj.weight /= 3
        attention.v_proj.weight *= 5
    torch.testing.assert_close(scores_of(reading_heads(model, cache, kind)), before)


def test_a_head_built_to_write_and_read_a_direction_ranks_first(gpt2):
    cache = activation_cache(gpt2, None, ROWS)
    kept = {name: value.clone() for name, value in gpt2.state_dict().items()}
    unit = (DIRECTION - DIRECTION.mean()) / (DIRECTION - DIRECTION.mean()).norm()
    block = gpt2.transformer.h[2]
    with torch.no_grad():
        block.ln_1.weight.fill_(1)
        block.attn.c_attn.weight[:, D + W : D + 2 * W] = unit[:, None]  # keys of head 1
        block.attn.c_proj.weight[3 * W :] = 100 * unit  # output of head 3
    reads = reading_heads(gpt2, cache, "key", direction=unit, positions=None)
    writes = writing_heads(gpt2, cache, direction=unit, positions=None)
    gpt2.load_state_dict(kept)
    assert reads.loc[0, ["layer", "head"]].tolist() == [2, 1]
    assert writes.loc[0, ["layer", "head"]].tolist() == [2, 3]


@pytest.mark.matrix
@pytest.mark.parametrize(("source", "destination"), [(1, 3), (0, 0), (-4, -1)])
def test_flow_is_the_models_own_attention_and_what_it_carries(family_model, source, destination):
    flow = information_flow(family_model, word_tokenizer(), TEXT, source, destination)
    assert list(zip(flow.layer, flow["head"], strict=True)) == [(k, h) for k in range(L) for h in range(H)]
    W = head_width(family_model.config)
    with torch.no_grad(), reporting_attention(family_model):
        own = family_model(IDS, output_attentions=True).attentions
        cache = activation_cache(family_model, None, IDS.tolist(), "v.*")
    for row in flow.itertuples():
        attention = own[row.layer][0, row.head, destination, source]
        assert row.attention == attention.item()
        values = cache[f"v.{row.layer}"][0, source]  # [G, W]
        value = values[row.head // (H // len(values))].double()
        carried = (
            output_weight(family_model, row.layer)[:, row.head * W : (row.head + 1) * W] @ value * attention.double()
        )
        assert row.norm == pytest.approx(residual_scale(family_model) * carried.norm().item(), rel=1e-4)
    assert hooks_on(family_model) == 0


def test_what_the_first_token_carries_to_itself_is_all_its_heads_write(family_model):
    flow = information_flow(family_model, word_tokenizer(), TEXT, 0, 0)
    cache = activation_cache(family_model, None, IDS.tolist(), "heads.*")
    writes = scores_of(writing_heads(family_model, cache, positions=[0]))
    assert (flow.attention == 1).all()
    torch.testing.assert_close(torch.tensor(flow.norm.to_numpy()).view(L, H), writes, rtol=1e-4, atol=1e-6)


def held(model):
    return activation_cache(model, None, ROWS)


NO_DIRECTION = "direction has length {}: give one that is finite and above 0"
ERRORS = [
    (
        lambda m: information_flow(m, word_tokenizer(), TEXT, 3, 1),
        "source 3 comes after destination 1: no token attends to later ones",
    ),
    (lambda m: information_flow(m, word_tokenizer(), "w5", 0, 1), "'w5' has no token 1: it is 1 token long"),
    (
        lambda m: information_flow(m, word_tokenizer(), "w5", 0, 0),
        "'w5' is a single token, which can attend only to itself: give a longer text",
    ),
    (lambda m: information_flow(m, word_tokenizer(), "w5 w6", -3, 1), "'w5 w6' has no token -3: it is 2 tokens long"),
    (
        lambda m: reading_heads(m, held(m), "keys"),
        "unknown kind 'keys'; did you mean 'key'? Allowed: query, key, value",
    ),
    (
        lambda m: reading_heads(m, activation_cache(m, None, ROWS, "heads.*"), "key"),
        "the cache holds no resid_pre.0: make it with names=['resid_pre.*'], or more",
    ),
    (
        lambda m: writing_heads(m, activation_cache(m, None, ROWS, "v.*")),
        "the cache holds no heads.0: make it with names=['heads.*'], or more",
    ),
    (lambda m: writing_heads(m, held(m), positions=[2]), "position 2 does not exist; prompt 1 has 2 tokens, 0 to 1"),
    (lambda m: writing_heads(m, held(m), direction=torch.ones(3)), "direction has shape (3,): give (32,)"),
    (lambda m: reading_heads(m, held(m), "key", direction=torch.ones(2, D)), "direction has shape (2, 32): give (32,)"),
    (lambda m: writing_heads(m, held(m), direction=torch.zeros(D)), NO_DIRECTION.format(0.0)),
    (
        lambda m: reading_heads(m, held(m), "key", direction=torch.full((D,), torch.nan)),
        NO_DIRECTION.format("nan"),
    ),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_bad_input_is_refused(llama, call, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(llama)
