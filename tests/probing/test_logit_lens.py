import re

import numpy as np
import pytest
import torch
from torch import nn

from interpret.activations.cache import activation_cache
from interpret.anatomy import anatomy_of, final_modules, logit_cap
from interpret.errors import InputError, UnsupportedModelError
from interpret.probing._logit_attribution import _pulled_back, head_writes, logit_attribution
from interpret.probing._logit_lens import logit_lens
from interpret.probing.residual_stream import residual_decomposition, residual_movement
from reference.kinds import ATTENDING, FURTHER, FURTHER_WHOLE, KINDS, MORE_KINDS, D, L, V
from reference.tiny import residual_scale, tiny_model
from reference.toy_tokenizers import byte_level

ROWS = [[5, 6, 7, 8, 9], [20, 30], [40, 50, 60]]
TARGETS = [3, 50, 96]
EVERY_KIND = pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
PLACES = [(prompt, position) for prompt, row in enumerate(ROWS) for position in range(len(row))]


@EVERY_KIND
def test_the_last_layers_lens_is_the_model_itself(kind):
    model = tiny_model(kind)
    cache = activation_cache(model, None, ROWS)
    lens = logit_lens(model, cache, top=V, positions=None)
    assert len(lens) == len(PLACES) * (L + 1) * V
    for prompt, position in PLACES:
        here = lens[(lens.prompt == prompt) & (lens.position == position) & (lens.layer == L)]
        logits = cache["logits"][prompt, position]
        np.testing.assert_allclose(here.logit, logits[here.token_id.tolist()], atol=1e-5)
        np.testing.assert_allclose(here.probability, logits.softmax(-1)[here.token_id.tolist()], atol=1e-6)
        assert here["rank"].tolist() == list(range(1, V + 1))
        assert here.token_id.iloc[0] == logits.argmax()


@torch.no_grad()
def test_a_layers_lens_is_head_of_final_norm_of_its_state(llama):
    cache = activation_cache(llama, None, ROWS)
    lens = logit_lens(llama, cache, [7], top=0, positions=[1])
    for row in lens.itertuples():
        name = "resid_pre.0" if row.layer == 0 else f"resid_post.{row.layer - 1}"
        logits = llama.lm_head(llama.model.norm(cache[name][row.prompt, 1]))
        assert row.logit == pytest.approx(logits[7].item(), abs=1e-5)
        assert row.probability == pytest.approx(logits.softmax(-1)[7].item(), abs=1e-6)
        assert row.rank == 1 + logits.argsort(descending=True).tolist().index(7)


def test_followed_tokens_stand_once_and_in_order_among_the_likeliest(gpt2):
    lens = logit_lens(gpt2, activation_cache(gpt2, None, ROWS), [7, 11, 7], top=3)
    for _, here in lens.groupby(["prompt", "position", "layer"]):
        assert {7, 11} <= set(here.token_id)
        assert here.token_id.is_unique
        assert here["rank"].is_monotonic_increasing
        assert here["rank"].iloc[:3].tolist() == [1, 2, 3]
    assert list(lens.columns) == "prompt position layer token_id token logit probability rank agrees kl".split()


def test_equal_logits_share_a_rank():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[[7, 9, 11]] = 0  # their logits are 0 for any state
    lens = logit_lens(model, activation_cache(model, None, ROWS[:1]), [7, 9, 11], top=V)
    for _, here in lens.groupby("layer"):
        expected = [1 + sum(here.logit > logit) for logit in here.logit]
        assert here["rank"].tolist() == expected
        assert here[here.token_id.isin([7, 9, 11])]["rank"].nunique() == 1


def test_tokens_are_asked_for_and_written_by_the_tokenizer():
    tokenizer, model = byte_level(), tiny_model("gpt2")
    model.resize_token_embeddings(len(tokenizer))
    cache = activation_cache(model, tokenizer, ["The city of"])
    lens = logit_lens(model, cache, ["P"], tokenizer=tokenizer, top=0)
    assert lens.token.tolist() == ["P"] * (L + 1)
    assert set(lens.token_id) == set(tokenizer("P").input_ids)


@EVERY_KIND
def test_shares_of_a_logit_add_up_to_it_in_every_family(kind):
    model = tiny_model(kind)
    cache = activation_cache(model, None, ROWS)
    if kind == "granitemoehybrid_experts":
        with pytest.raises(
            UnsupportedModelError, match="its MLP adds the outputs of several modules, so mlp_out is not"
        ):
            logit_attribution(model, cache, TARGETS)
        return
    shares = logit_attribution(model, cache, TARGETS, positions=None)
    sums = shares.groupby(["prompt", "position"]).logit.sum()
    assert list(sums.index) == PLACES
    for prompt, position in PLACES:
        logit, cap = cache["logits"][prompt, position, TARGETS[prompt]].item(), logit_cap(model)
        total = sums[prompt, position] if cap is None else cap * np.tanh(sums[prompt, position] / cap)
        assert total == pytest.approx(logit, abs=1e-4)


class BareRMSNorm(nn.Module):
    """RMSNorm without a weight."""

    variance_epsilon = 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("norm", [nn.LayerNorm(D, elementwise_affine=False), BareRMSNorm()], ids=["layer", "rms"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt_post_norm"])
def test_norms_without_weights_are_norms_with_weights_of_one(kind, norm):
    model = tiny_model(kind)
    anatomy = anatomy_of(model)
    for layer in anatomy.layers:
        setattr(layer, anatomy.family.parts.attention_norm, norm)
        setattr(layer, anatomy.family.mlp_norm, norm)
    if kind != "opt_post_norm":  # which has no final norm
        setattr(anatomy.trunk, anatomy.family.final[0], norm)
    cache = activation_cache(model, None, ROWS)
    shares = logit_attribution(model, cache, TARGETS, positions=None)
    sums = shares.groupby(["prompt", "position"]).logit.sum()
    lens = logit_lens(model, cache, TARGETS, top=0, positions=None)
    lens = lens.set_index(["layer", "prompt", "position", "token_id"])
    for prompt, position in PLACES:
        logit = cache["logits"][prompt, position, TARGETS[prompt]].item()
        assert sums[prompt, position] == pytest.approx(logit, abs=1e-4)
        assert lens.logit[L, prompt, position, TARGETS[prompt]] == pytest.approx(logit, abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in ("mamba", "jamba") if kind in MORE_KINDS])
def test_each_layer_without_attention_has_the_share_of_what_is_in_its_place(kind):
    model = tiny_model(kind)
    cache = activation_cache(model, None, ROWS)
    shares = logit_attribution(model, cache, TARGETS, positions=None).set_index(["prompt", "position"])
    (norm,) = final_modules(anatomy_of(model))
    scale = cache["resid_post.3"].double().pow(2).mean(-1) + norm.variance_epsilon
    for prompt, position in PLACES:
        here = shares.loc[(prompt, position)]
        reads = model.get_output_embeddings().weight[TARGETS[prompt]] * norm.weight / scale[prompt, position].sqrt()
        for layer in range(L):
            of_layer = here[here.layer == layer]
            mixing = "attention" if layer in ATTENDING[kind] else "mixer"
            assert of_layer.component.tolist() == ["mlp", mixing][-len(of_layer) :]
            wrote = cache[f"{'attn_out' if mixing == 'attention' else 'mixer_out'}.{layer}"][prompt, position]
            expected = (wrote.double() * reads).sum().item()
            assert of_layer.logit[of_layer.component == mixing].item() == pytest.approx(expected, abs=1e-6)


def test_each_head_and_mlp_of_each_layer_has_its_share(family_model):
    cache = activation_cache(family_model, None, ROWS)
    shares = logit_attribution(family_model, cache, TARGETS)
    first = shares[shares.prompt == 0]
    heads = first[first.component == "head"]
    assert [*zip(heads.layer, heads["head"], strict=True)] == [(k, h) for k in range(L) for h in range(4)]
    assert sorted(first[first.component == "mlp"].layer) == list(range(L))
    assert (shares.position == [len(ROWS[prompt]) - 1 for prompt in shares.prompt]).all()


def test_a_share_is_the_derivative_of_the_logit_at_a_frozen_norm():
    # Independent computation: scale one layer's MLP output by 1 + t, with the scale of the final norm fixed.
    model = tiny_model("llama")
    cache = activation_cache(model, None, ROWS[:1])
    stream, part = cache[f"resid_post.{L - 1}"][0, -1], cache["mlp_out.1"][0, -1]
    rms = (stream.pow(2).mean() + model.model.norm.variance_epsilon).sqrt()
    expected = (part / rms * model.model.norm.weight) @ model.lm_head.weight[3]
    shares = logit_attribution(model, cache, [3])
    (found,) = shares[(shares.component == "mlp") & (shares.layer == 1)].logit
    assert found == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_a_heads_share_is_what_is_lost_when_its_slice_is_zeroed_at_a_frozen_norm(gpt2):
    cache = activation_cache(gpt2, None, ROWS[:1])
    block = gpt2.transformer.h[2].attn.c_proj
    heads = cache["heads.2"][0, -1:].clone()
    without = heads.clone()
    without[:, 3] = 0
    lost = (block(heads.flatten(1)) - block(without.flatten(1)))[0]
    stream = cache[f"resid_post.{L - 1}"][0, -1]
    scale = (stream.var(unbiased=False) + gpt2.transformer.ln_f.eps).sqrt()
    expected = ((lost - lost.mean()) / scale * gpt2.transformer.ln_f.weight) @ gpt2.lm_head.weight[3]
    shares = logit_attribution(gpt2, cache, [3])
    (found,) = shares[(shares.component == "head") & (shares.layer == 2) & (shares["head"] == 3)].logit
    assert found == pytest.approx(expected.item(), abs=1e-5)


@torch.no_grad()
def test_what_heads_write_adds_up_to_the_attentions_output(family_model):
    cache = activation_cache(family_model, None, ROWS[:1])
    anatomy = anatomy_of(family_model)
    for k, block in enumerate(anatomy.layers):
        project = block.get_submodule(anatomy.parts.attention_out)
        writes, bias = head_writes(project, cache[f"heads.{k}"][0])
        assert writes.shape == (5, 4, D)
        after = block.get_submodule(anatomy.parts.attention_after) if anatomy.parts.attention_after else nn.Identity()
        output = after(writes.sum(1) + bias) * residual_scale(family_model)
        torch.testing.assert_close(output, cache[f"attn_out.{k}"][0], rtol=0, atol=1e-5)


def test_parts_of_a_layers_output_add_up_to_it(family_model):
    cache = activation_cache(family_model, None, ROWS)
    parts = residual_decomposition(family_model, cache, positions=None)
    assert len(parts) == len(PLACES) * L * 4
    assert np.allclose(parts.groupby(["prompt", "position", "layer"]).share.sum(), 1)
    rest = parts[parts.part == "rest"].norm
    if anatomy_of(family_model).block == "post_norm":
        assert (rest > 0.1).all()
    else:
        assert (rest < 1e-5).all()


def test_decomposition_and_movement_have_their_closed_forms(gpt2):
    cache = activation_cache(gpt2, None, ROWS)
    parts = residual_decomposition(gpt2, cache, positions=[1]).set_index(["prompt", "layer", "part"])
    moves = residual_movement(gpt2, cache, positions=[1]).set_index(["prompt", "layer"])
    for prompt in range(3):
        for k in range(L):
            names = ("resid_pre", "attn_out", "mlp_out", "resid_post")
            pre, attn, _, post = (cache[f"{name}.{k}"][prompt, 1].double().numpy() for name in names)
            size = np.linalg.norm
            here, move = parts.loc[prompt, k, "attn_out"], moves.loc[prompt, k]
            assert here.norm == pytest.approx(size(attn))
            assert here.cosine == pytest.approx(attn @ post / size(attn) / size(post))
            assert here.share == pytest.approx(attn @ post / size(post) ** 2)
            assert move.before == pytest.approx(size(pre))
            assert move.after == pytest.approx(size(post))
            assert move.moved == pytest.approx(size(post - pre) / size(pre))
            assert move.cosine == pytest.approx(pre @ post / size(pre) / size(post))


@pytest.mark.parametrize(
    ("call", "names", "message"),
    [
        (
            lambda model, cache: logit_lens(model, cache),
            "resid_pre.*",
            "the cache holds no resid_post.0: make it with names=['resid_pre.0', 'resid_post.*'], or more",
        ),
        (
            lambda model, cache: logit_attribution(model, cache, TARGETS),
            "resid_*",
            "the cache holds no heads.0: make it with names=['heads.*', 'mlp_out.*', 'resid_pre.0', 'resid_post.3'], "
            "or more",
        ),
        (
            lambda model, cache: residual_movement(model, cache),
            "resid_pre.*",
            "the cache holds no resid_post.0: make it with names=['resid_pre.*', 'resid_post.*'], or more",
        ),
        (
            lambda model, cache: logit_attribution(model, cache, [3]),
            "*",
            "tokens: give one for each of the 3 prompts, not 1",
        ),
        (
            lambda model, cache: logit_lens(model, cache, [97]),
            "*",
            "token 97 does not exist; this model has tokens 0 to 96",
        ),
        (
            lambda model, cache: logit_lens(model, cache, ["Paris"]),
            "*",
            "token 'Paris' is a text: give the tokenizer, or the token's id",
        ),
        (
            lambda model, cache: logit_lens(model, cache, ["PQ"], tokenizer=byte_level()),
            "*",
            "'PQ' is 2 tokens, ['P', 'Q']: give a single token",
        ),
        (
            lambda model, cache: residual_movement(model, cache, positions=[2]),
            "*",
            "position 2 does not exist; prompt 1 has 2 tokens, 0 to 1",
        ),
        (
            lambda model, cache: logit_lens(model, byte_level(), "A text"),
            "*",
            f"cache is of type {type(byte_level()).__name__}; make one with interpret.activations.activation_cache("
            "model, tokenizer, texts, ['resid_pre.0', 'resid_post.*'])",
        ),
        (
            lambda model, cache: logit_lens(model, cache, top=98),
            "*",
            "top is 98: give 1 to 97, or 0 and some tokens to follow",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(llama, call, names, message):
    cache = activation_cache(llama, None, ROWS, names)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        call(llama, cache)


class OffsetRMSNorm(nn.Module):
    """As Gemma's norms, which transformers 4.34.0 does not have: the weight is an offset from 1."""

    eps = 1e-3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25, 1.0, 0.0]))

    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * (1 + self.weight)


def test_a_norms_offset_is_part_of_its_weight():
    x, reads = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    norm = OffsetRMSNorm().double()
    back, constant = _pulled_back(norm, x, reads)
    torch.testing.assert_close((back * x).sum(-1) + constant, (norm(x) * reads).sum(-1))
