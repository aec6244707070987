"""LIME, compared with additive functions, with the weighted ridge of whole passes, and with closed forms."""

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from interpret.attribution.methods import masked_texts as masked_texts
from interpret.attribution.methods import masking
from interpret.attribution.methods.masked_texts import masked_values
from interpret.attribution.methods.masking import fit_ridge, proximity, token_masks
from interpret.attribution.steps.functions import probability
from interpret.attribution.steps.step import Step
from interpret.errors import InputError
from interpret.prompts.spelling import piece
from reference.masking import lime, step_of, steps_of, whole_pass
from reference.toy_tokenizers import sentence_piece


def test_lime_of_steps_together_is_what_each_is_alone(family_model):
    together, alone = (steps_of(family_model, (2, 5, 8)) for _ in range(2))
    for scores, ours, step in zip(masking.lime(together, n_samples=50), together, alone, strict=True):
        torch.testing.assert_close(scores, lime(step, n_samples=50), rtol=1e-4, atol=1e-5)
        # NaN where the value does not depend on the only token that may be masked.
        assert ours.details["r2"] == pytest.approx(step.details["r2"], rel=1e-4, nan_ok=True)


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
