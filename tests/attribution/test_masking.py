"""Masked texts with a shared KV cache give the values of full passes; LIME recovers additive values."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from interpret.anatomy import check_logits
from interpret.attribution._attribute import attribute
from interpret.attribution.methods import masked_texts as masked_texts
from interpret.attribution.methods import masking
from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.methods.masking import fit_ridge, proximity, token_masks
from interpret.attribution.steps.functions import StepReading, contrast_prob_diff, logit, probability
from interpret.attribution.steps.step import Foil, Step
from interpret.errors import InputError
from interpret.prompts.spelling import piece
from reference.plain_attribution import PROMPT, TARGET, TOKENIZER, ids_of, prefixes, wide_model
from reference.toy_tokenizers import byte_level, sentence_piece

IDS = (1, 5, 9, 5, 70, 33, 2, 8)
BASELINES = ("zero", "mean", "unk", 7)


def step_of(model, ids=IDS, target=11, function: Callable[[StepReading], Tensor] = logit, foil=None, batch_size=3):
    return Step(model, sentence_piece(), ids, target, foil, function, batch_size)


def occlusion(step: Step, **options) -> Tensor:
    return masking.occlusion([step], **options)[0]


def lime(step: Step, **options) -> Tensor:
    return masking.lime([step], **options)[0]


def whole_pass(step: Step, embeddings: Tensor) -> Tensor:
    """The value of one text from the model's own forward pass, [1, T, D] -> a scalar."""
    logits = step.model(inputs_embeds=embeddings, use_cache=False).logits[:, -1]
    return step.function(StepReading(logits, step.target, None, None, lambda n, seed: logits))[0]


@torch.no_grad()
def occluded(step: Step, window: int, baseline) -> Tensor:
    """Occlusion by its definition, with one full pass per window."""
    T, replacement = len(step.ids), step.baseline(baseline)
    of_token: list[list[Tensor]] = [[] for _ in range(T)]
    plain = whole_pass(step, step.embeddings)
    for first in range(T - window + 1):
        embeddings = step.embeddings.clone()
        embeddings[:, first : first + window] = replacement[:, first : first + window]
        lost = plain - whole_pass(step, embeddings)
        for token in range(first, first + window):
            of_token[token].append(lost)
    return torch.stack([torch.stack(values).mean() for values in of_token])


@pytest.mark.matrix
@pytest.mark.parametrize("baseline", BASELINES)
def test_occlusion_is_what_whole_passes_lose(family_model, baseline):
    step = step_of(family_model)
    found = occlusion(step, baseline=baseline)
    torch.testing.assert_close(found.float(), occluded(step, 1, baseline), rtol=1e-5, atol=1e-5)


def test_occlusion_keeps_its_sign(llama):
    signs = torch.cat([occlusion(step_of(llama, target=target)) for target in (11, 12, 13)]).sign()
    assert {-1, 1} <= set(signs.tolist())


@pytest.mark.parametrize("window", range(1, len(IDS) + 1))
@pytest.mark.parametrize("batch_size", [1, 100])
def test_occlusion_takes_any_window(llama, window, batch_size):
    step = step_of(llama, batch_size=batch_size)
    found = occlusion(step, window=window, baseline="mean")
    torch.testing.assert_close(found.float(), occluded(step, window, "mean"), rtol=1e-5, atol=1e-5)


def test_long_texts_are_packed_apart(gpt2):
    step = step_of(gpt2, ids=tuple(range(3, 53)), batch_size=100)  # 50 tokens: 1275 to compute, in packs of 256
    torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2])
def test_no_pass_holds_more_tokens_than_a_pack(llama, factor):
    """A Llama does not double the MLP's output, so the texts of this model are run in full passes."""
    tokens, mlp = [], llama.model.layers[1].mlp
    counted = mlp.act_fn.register_forward_hook(lambda module, args, output: tokens.append(output.shape[:-1].numel()))
    changed = mlp.register_forward_hook(lambda module, args, output: output * factor)
    step = step_of(llama, ids=tuple(range(3, 53)), batch_size=100)
    found = occlusion(step)
    counted.remove()
    torch.testing.assert_close(found.float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)
    changed.remove()
    assert masked_texts.LARGEST_TREE / 2 < max(tokens) <= masked_texts.LARGEST_TREE


def test_packs_are_as_full_as_the_batch_size_allows(llama):
    """51 different texts take 13 passes of at most 4 rows, after the unmasked text's pass and its check."""
    passes = []
    check_logits(llama)  # its pass is not counted
    hook = llama.model.layers[0].mlp.act_fn.register_forward_hook(lambda *event: passes.append(1))
    occlusion(step_of(llama, ids=tuple(range(3, 53)), batch_size=4))
    hook.remove()
    assert len(passes) == 2 + 13


def test_a_text_of_one_token_can_be_masked(llama):
    step = step_of(llama, ids=(5,))
    torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12),
    kind=st.sampled_from(["llama", "mistral", "gpt2", "gpt_neox", "opt"]),
    batch_size=st.integers(1, 5),
)
def test_any_masks_give_what_whole_passes_give(rows, kind, batch_size):
    step = step_of(MODELS[kind], batch_size=batch_size)
    masked, replacement = torch.tensor(rows), step.baseline("mean")
    with torch.no_grad():
        texts = torch.where(masked[:, :, None], replacement, step.embeddings)
        expected = torch.stack([whole_pass(step, one[None]) for one in texts])
    torch.testing.assert_close(masked_values([step], masked, replacement)[:, 0].float(), expected, rtol=1e-5, atol=1e-5)


class _Lent(dict):
    """Models by kind, built on first use."""

    def __missing__(self, kind):
        from reference.tiny import tiny_model

        self[kind] = tiny_model(kind)
        if kind == "mistral":
            self[kind].config.sliding_window = 3
            for layer in self[kind].model.layers:
                layer.self_attn.sliding_window = 3
        return self[kind]


MODELS = _Lent()


def columns_of_layers(llama, work):
    """Number of tokens that go through each layer."""
    columns = []
    check_logits(llama)  # its passes are not counted
    handle = llama.model.layers[0].mlp.act_fn.register_forward_hook(
        lambda module, args, output: columns.append(output.shape[:-1].numel())
    )
    work()
    handle.remove()
    return sum(columns)


def test_only_what_follows_the_first_masked_token_is_computed(llama):
    """The unmasked text's pass and its check, then its suffix (one token) and those of the masked texts."""
    columns = columns_of_layers(llama, lambda: occlusion(step_of(llama, batch_size=100)))
    T = len(IDS)
    rests = sum(range(1, T + 1)) + 1
    assert columns == 2 * T + rests


def test_equal_masks_are_computed_once(llama):
    seen = []
    step = step_of(llama, function=lambda reading: seen.append(len(reading.logits)) or logit(reading), batch_size=100)
    masked = torch.zeros(40, len(IDS), dtype=torch.bool)
    masked[1::2, 3] = True
    values = masked_values([step], masked, step.baseline("zero"))[:, 0]
    assert seen == [2]
    assert values[::2].unique().numel() == values[1::2].unique().numel() == 1
    assert values[0] != values[1]


def test_a_model_whose_layers_do_something_else_runs_whole(llama):
    """Hooks of other libraries, such as adapters, take effect."""
    handle = llama.model.layers[1].mlp.register_forward_hook(lambda module, args, output: output * 2)
    try:
        step = step_of(llama)
        torch.testing.assert_close(occlusion(step).float(), occluded(step, 1, "zero"), rtol=1e-5, atol=1e-5)
    finally:
        handle.remove()


@pytest.mark.parametrize("prefix", [None, (1, 5, 9, 5, 71, 3)])
def test_a_contrast_is_followed_into_the_foils_text(llama, prefix):
    step = step_of(llama, function=contrast_prob_diff, foil=Foil(3, prefix))
    found = occlusion(step)
    with torch.no_grad():
        for token in range(len(IDS)):
            embeddings = step.embeddings.clone()
            embeddings[:, token] = 0
            expected = step.value(step.embeddings) - step.value(embeddings)
            torch.testing.assert_close(found[token].float(), expected[0], rtol=1e-5, atol=1e-5)


def steps_of(model, lengths, **options):
    """Steps of one text, each with the tokens before it."""
    return [step_of(model, ids=IDS[:length], target=11 + length, **options) for length in lengths]


@pytest.mark.matrix
@pytest.mark.parametrize("prefix", [None, (1, 5, 9, 71, 3)])
@pytest.mark.parametrize("window", [1, 3])
def test_steps_together_are_what_each_is_alone(family_model, window, prefix):
    """Windows that reach beyond the end of a step's text are not used for that step."""
    options = {"function": contrast_prob_diff, "foil": Foil(3, prefix), "batch_size": 100}
    found = masking.occlusion(steps_of(family_model, (3, 4, 7, 8), **options), window=window)
    for scores, step in zip(found, steps_of(family_model, (3, 4, 7, 8), **options), strict=True):
        torch.testing.assert_close(scores, occlusion(step, window=window), rtol=1e-5, atol=1e-6)


def test_a_step_that_runs_the_model_again_runs_its_own_text(llama):
    function = lambda reading: reading.with_dropout(1, 0)[0][:, reading.target]  # noqa: E731 (this model has none)
    found = masking.occlusion(steps_of(llama, (3, 8), function=function))
    for scores, step in zip(found, steps_of(llama, (3, 8)), strict=True):
        torch.testing.assert_close(scores, occlusion(step), rtol=1e-5, atol=1e-6)


def test_lime_of_steps_together_is_what_each_is_alone(family_model):
    together, alone = (steps_of(family_model, (2, 5, 8)) for _ in range(2))
    for scores, ours, step in zip(masking.lime(together, n_samples=50), together, alone, strict=True):
        torch.testing.assert_close(scores, lime(step, n_samples=50), rtol=1e-4, atol=1e-5)
        assert ours.details["r2"] == pytest.approx(step.details["r2"], rel=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=12),
    lengths=st.sets(st.integers(1, 8), min_size=1).map(sorted),
    kind=st.sampled_from(["llama", "mistral", "gpt2"]),
    batch_size=st.integers(1, 5),
)
def test_any_masks_give_all_steps_what_whole_passes_give(rows, lengths, kind, batch_size):
    steps = steps_of(MODELS[kind], lengths, batch_size=batch_size)
    masked = torch.tensor(rows)[:, : lengths[-1]]
    found = masked_values(steps, masked, steps[-1].baseline("mean"))
    assert found.shape == (len(rows), len(lengths))
    for number, step in enumerate(steps):
        own, replacement = masked[:, : len(step.ids)], step.baseline("mean")
        with torch.no_grad():
            texts = torch.where(own[:, :, None], replacement, step.embeddings)
            expected = torch.stack([whole_pass(step, one[None]) for one in texts])
        torch.testing.assert_close(found[:, number].float(), expected, rtol=1e-5, atol=1e-5)


def test_a_masked_text_is_read_once_for_all_steps(llama):
    rows = []
    check_logits(llama)  # its passes are not counted
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: rows.append(output[..., 0].numel()))
    columns = columns_of_layers(llama, lambda: masking.occlusion(steps_of(llama, (4, 6, 8), batch_size=100)))
    hook.remove()
    # The text's own pass and its check; the rest of the text itself from the first step's end, and those of 8 masks.
    assert columns == 2 * 8 + 5 + sum(range(1, 9))
    # A mask counts for the steps that come after it; the text itself for all.
    assert sum(rows) == (4 + 6 + 8) + 3


def test_many_steps_go_through_the_head_in_parts(llama, monkeypatch):
    expected = masking.occlusion(steps_of(llama, range(1, 9)))
    monkeypatch.setattr(masked_texts, "HEAD_ROWS", 5)
    rows = []
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    found = masking.occlusion(steps_of(llama, range(1, 9)))
    hook.remove()
    assert max(rows) <= 5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, 9, -1])
def test_a_window_that_does_not_fit_is_refused(llama, window):
    step = step_of(llama)
    name = piece(step.tokenizer, 11)
    message = f"window is {window}; the text before token {name!r} allows 1 to 8 tokens"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        occlusion(step, window=window)


# ---- LIME


@dataclass(frozen=True)
class AdditiveStep(Step):
    """A step whose value is the sum of values of its tokens, with a model whose layers cannot be run one by one."""

    def states(self, embeddings: Tensor) -> Tensor:
        return embeddings.cumsum(1)

    def head(self, states: Tensor) -> Tensor:
        return states


class Additive:
    """A "model" whose embeddings are numbers, of width 1; the end-of-text token has the value 0."""

    config = SimpleNamespace(model_type="none", is_encoder_decoder=False)
    device = torch.device("cpu")
    base_model = torch.nn.Identity()

    def __init__(self, worth):
        self.embedding = torch.nn.Embedding.from_pretrained(torch.tensor(worth)[:, None])

    def get_input_embeddings(self):
        return self.embedding

    def parameters(self):
        return self.embedding.parameters()


def additive_step(ids):
    worth = torch.randn(500, generator=torch.Generator().manual_seed(3)).tolist()
    worth[sentence_piece().eos_token_id] = 0.0
    step = AdditiveStep(Additive(worth), sentence_piece(), ids, 0, None, lambda reading: reading.logits[:, 0], 64)
    return step, torch.tensor([worth[one] for one in ids])


def ranks(values: Tensor) -> Tensor:
    return values.argsort().argsort().double()


def test_lime_finds_what_each_token_of_an_additive_function_is_worth():
    step, truth = additive_step(tuple(range(20, 40)))
    found = lime(step)
    spearman = torch.corrcoef(torch.stack([ranks(found), ranks(truth)]))[0, 1]
    assert spearman > 0.9
    torch.testing.assert_close(found.float(), truth, atol=0.25, rtol=0.25)
    assert 0.9 < step.details["r2"] <= 1


def test_lime_is_the_weighted_ridge_of_whole_passes(family_model):
    """Ridge regression as one least-squares problem: a row for each sample and each penalty."""
    step, n, width, penalty = step_of(family_model, function=probability), 60, 0.4, 0.05
    free = [at for at, special in enumerate(step.special.tolist()) if not special]
    there = token_masks(n, len(free), 0.3, 0).numpy()
    values, replacement = [], step.baseline("eos")
    with torch.no_grad():
        for row in there:
            embeddings = step.embeddings.clone()
            for at, bit in zip(free, row, strict=True):
                embeddings[:, at] = embeddings[:, at] if bit else replacement[:, at]
            values.append(whole_pass(step, embeddings).item())
    weights = np.exp(-(((there == 0).mean(1) / width) ** 2))
    roots = np.sqrt(weights / weights.mean())
    samples = roots[:, None] * np.column_stack([np.ones(n), there])
    shrunk = np.column_stack([np.zeros(len(free)), np.sqrt(penalty * n) * np.eye(len(free))])
    left, right = np.vstack([samples, shrunk]), np.concatenate([roots * values, np.zeros(len(free))])
    expected = np.linalg.lstsq(left, right, rcond=None)[0][1:]
    found = lime(step, n_samples=n, kernel_width=width, penalty=penalty)[free].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_lime_without_a_penalty_is_exact_where_the_function_is_linear():
    step, truth = additive_step(tuple(range(20, 32)))
    torch.testing.assert_close(lime(step, penalty=0).float(), truth, atol=1e-4, rtol=1e-4)
    assert step.details["r2"] == pytest.approx(1)


def test_lime_says_how_badly_a_line_fits(llama):
    step = step_of(llama, function=probability)
    lime(step, n_samples=200)
    assert 0 < step.details["r2"] < 0.99


def test_lime_of_a_constant_has_no_r2(llama):
    step = step_of(llama, function=lambda reading: reading.logits[:, 0] * 0 + 3)
    assert lime(step, n_samples=20).abs().max() < 1e-9
    assert math.isnan(step.details["r2"])


def test_lime_depends_on_its_seed_alone(llama):
    first, again, other = (lime(step_of(llama), n_samples=50, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first, other, atol=1e-2)


def test_lime_never_masks_special_tokens(llama, monkeypatch):
    seen = []

    def spied(steps, masked, replacement):
        seen.append(masked)
        return masked_values(steps, masked, replacement)

    monkeypatch.setattr(masking, "masked_values", spied)
    step = step_of(llama)
    special = [True, False, False, False, False, False, True, False]  # <s> and </s>
    assert step.special.tolist() == special
    scores = lime(step, n_samples=60)
    (masked,) = seen
    assert not masked[0].any()
    assert masked.any(0).tolist() == [not one for one in special]
    assert (scores == 0).tolist() == special


def test_a_masked_token_becomes_a_real_one(llama):
    """With a single token, the coefficient is the difference of the values of two full passes."""
    step = step_of(llama, ids=(5,))
    scores = lime(step, n_samples=40, mask_probability=0.5, baseline="unk", penalty=0)
    with torch.no_grad():
        unk = llama.get_input_embeddings()(torch.tensor([[sentence_piece().unk_token_id]]))
        expected = whole_pass(step, step.embeddings) - whole_pass(step, unk)
    torch.testing.assert_close(scores[0].float(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1}, "n_samples is 1; a linear model needs at least 2"),
        ({"mask_probability": 0.0}, "mask_probability is 0.0; it must be above 0 and below 1"),
        ({"mask_probability": 1}, "mask_probability is 1; it must be above 0 and below 1"),
        ({"kernel_width": 0}, "kernel_width is 0; it must be above 0"),
        ({"penalty": -1}, "penalty is -1; it must be at least 0"),
    ],
)
def test_an_option_of_lime_out_of_its_range_is_refused(llama, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        lime(step_of(llama), **options)


def test_a_text_of_special_tokens_alone_is_refused(llama):
    step = step_of(llama, ids=(1, 2))
    message = f"the text before token {piece(step.tokenizer, 11)!r} has only special tokens, which"
    with pytest.raises(InputError, match=f"^{re.escape(message)} LIME never masks$"):
        lime(step)


@pytest.mark.parametrize("method", [occlusion, lime])
def test_a_baseline_the_tokenizer_lacks_is_refused(llama, method):
    step = Step(llama, byte_level(), IDS, 11, None, logit, 4)
    message = "baseline 'unk': this tokenizer has no such token; use 'zero', 'mean' or a token id"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        method(step, baseline="unk")


# ---- In ``attribute``


@pytest.mark.parametrize("method", ["occlusion", "lime"])
def test_the_one_call_masks_each_step(method):
    model, T = wide_model("gpt2"), len(ids_of(TARGET))
    options = {"n_samples": 30} if method == "lime" else {}
    with torch.inference_mode():  # no gradient is needed
        found = attribute(model, TOKENIZER, PROMPT, TARGET, method=method, baseline="eos", **options)
    (one,) = found.sequences
    assert one.scores.shape == (T, 2)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        plain = Step(model, TOKENIZER, tuple(ids), target, None, probability, 8)
        run = lime if method == "lime" else occlusion
        expected = run(plain, baseline="eos", **options)
        assert one.scores[: len(ids), step] == pytest.approx(expected.numpy(), abs=1e-6)
        assert one.details == {} or one.details["r2"][step] == pytest.approx(plain.details["r2"], abs=1e-5)
        if method == "occlusion":
            assert one.scores[: len(ids), step] == pytest.approx(occluded(plain, 1, "eos").numpy(), abs=1e-5)
    assert list(one.details) == (["r2"] if method == "lime" else [])


# ---- The mathematics of LIME


def test_masks_begin_with_the_whole_text_and_mask_their_share():
    masks = token_masks(2000, 7, 0.3, seed=0)
    assert masks.shape == (2000, 7)
    assert masks[0].tolist() == [1] * 7
    assert masks[1:].mean().item() == pytest.approx(0.7, abs=0.02)


def test_proximity_is_an_exponential_kernel_on_the_share_masked():
    masks = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]])
    assert proximity(masks, 0.5).tolist() == pytest.approx([1, 0.778801, 0.018316], abs=1e-6)


def test_the_ridge_is_where_its_loss_is_least():
    generator = torch.Generator().manual_seed(0)
    masks = token_masks(60, 5, 0.4, seed=1)
    values, weights = torch.randn(60, generator=generator).double(), torch.rand(60, generator=generator).double()
    fit = fit_ridge(masks, values, weights, 0.7)
    at = torch.cat([fit.coefficients, torch.tensor([fit.intercept], dtype=torch.float64)]).requires_grad_()
    residual = values - masks @ at[:5] - at[5]
    loss = (weights * residual**2).sum() + 0.7 * (at[:5] ** 2).sum()
    (slope,) = torch.autograd.grad(loss, at)
    assert slope.abs().max() < 1e-9
    mean = (weights * values).sum() / weights.sum()
    expected = 1 - (weights * residual**2).sum() / (weights * (values - mean) ** 2).sum()
    assert fit.r2 == pytest.approx(expected.item())


def test_a_linear_model_is_the_same_wherever_in_memory_its_data_is():
    generator = torch.Generator().manual_seed(0)
    masks, values = token_masks(20, 13, 0.3, 0), torch.rand(20, generator=generator, dtype=torch.float64)
    weights = proximity(masks, 0.25)
    found, kept = set(), []
    for size in range(1, 100):
        kept.append(torch.empty(37 * size, dtype=torch.uint8))  # moves what is allocated next
        found.add(tuple(fit_ridge(masks.clone(), values.clone(), weights.clone(), 0.01).coefficients.tolist()))
    assert len(found) == 1
