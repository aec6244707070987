"""KernelSHAP, compared with captum's Shapley values over all orders, and with functions whose values are known."""

import numpy as np
import pytest
import torch
from captum.attr import ShapleyValues

from interpret import InputError, attribute
from interpret.attribution.methods.shapley import coalitions, kernel_shap, shapley_values
from interpret.attribution.steps.functions import probability
from reference.masking import step_of, steps_of
from reference.plain_attribution import (
    PROMPT,
    TARGET,
    TOKENIZER,
    attributed,
    embeddings_of,
    prefixes,
    probability_of,
    wide_model,
)

GROUPS = ["The Eiffel", "Tower is", "in"]


def over_all_orders(model, ids, target, feature_of, baseline):
    """Shapley values of the features of tokens, from captum, [F]."""
    x, start = embeddings_of(model, ids), embeddings_of(model, [baseline] * len(ids))
    method = ShapleyValues(lambda x: probability_of(model, x, target))
    mask = torch.tensor(feature_of)[None, :, None].expand_as(x).contiguous()
    with torch.no_grad():
        of_tokens = method.attribute(x, start, feature_mask=mask, perturbations_per_eval=16)[0, :, 0]
    return [of_tokens[feature_of.index(one)].item() for one in sorted(set(feature_of))]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_scores_of_tokens_are_captums_over_all_orders(kind):
    model = wide_model(kind)
    found = attributed(model, method="kernel_shap", baseline=7, end=1)
    (ids, target), *_ = prefixes(TARGET)
    expected = over_all_orders(model, ids, target, list(range(len(ids))), 7)
    np.testing.assert_allclose(found.scores[: len(ids), 0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_scores_of_groups_are_captums_over_all_orders():
    model = wide_model("llama")
    found = attributed(model, method="kernel_shap", baseline=7, groups=GROUPS)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids)
        start = embeddings_of(model, [7] * 5 + ids[5:])  # what the model has generated is kept
        method = ShapleyValues(lambda x, of=target: probability_of(model, x, of))
        mask = torch.tensor([0, 0, 1, 1, 2, *[2] * step])[None, :, None].expand_as(x).contiguous()
        with torch.no_grad():
            expected = method.attribute(x, start, feature_mask=mask)[0, [0, 2, 4], 0].numpy()
        assert found.tokens[:3] == ("The Eiffel", " Tower is", " in")
        np.testing.assert_allclose(found.scores[:3, step], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_scores_add_up_also_if_they_are_estimated(llama):
    """From the text with all masked but special tokens, which are kept, to the text."""
    steps = steps_of(llama, (5, 8), function=probability)
    for step, scores in zip(steps, kernel_shap(steps, n_samples=40), strict=True):
        masked = torch.where(step.special[:, None], step.embeddings, step.baseline("eos"))
        with torch.no_grad():
            change = step.value(step.embeddings) - step.value(masked)
        assert scores.sum().item() == pytest.approx(change.item(), rel=1e-3, abs=1e-7)
        assert (scores[step.special] == 0).all()


def test_estimates_come_close_to_the_exact_values(llama):
    ids = tuple(range(20, 30))
    (exact,) = kernel_shap([step_of(llama, ids=ids, function=probability, batch_size=100)], n_samples=1022)
    step = step_of(llama, ids=ids, function=probability, batch_size=100)
    few, many = (kernel_shap([step], n_samples=n, seed=1)[0] for n in (60, 600))
    errors = [(found - exact).norm() / exact.norm() for found in (few, many)]
    assert errors[1] < errors[0]
    assert errors[1] < 0.15


@pytest.mark.parametrize("n_features", [1, 2, 5])
def test_an_additive_function_is_found_from_all_coalitions(n_features):
    worth = torch.arange(1.0, n_features + 1).double()[:, None]
    present, weights = coalitions(n_features, 100, 0)
    found = shapley_values(present, present.double() @ worth, weights, worth.sum(0))
    torch.testing.assert_close(found, worth)


def test_what_two_features_do_only_together_is_shared():
    present, weights = coalitions(3, 6, 0)
    both = (present[:, 0] & present[:, 1]).double()[:, None]
    found = shapley_values(present, both, weights, torch.ones(1).double())
    torch.testing.assert_close(found[:, 0], torch.tensor([0.5, 0.5, 0]).double(), atol=1e-12, rtol=0)


def test_drawn_coalitions_come_in_pairs_and_sizes_by_the_kernel():
    present, weights = coalitions(12, 4000, 3)
    assert present.shape == (4000, 12)
    assert (present[:2000] == ~present[2000:]).all()
    assert (weights == 1).all()
    sizes = present.sum(1)
    assert 1 <= sizes.min()
    assert sizes.max() <= 11
    shares = [1 / (size * (12 - size)) for size in range(1, 12)]
    expected = torch.tensor(shares) / sum(shares)
    torch.testing.assert_close(sizes.bincount()[1:] / 4000, expected, atol=0.02, rtol=0)
    torch.testing.assert_close(present.float().mean(0), torch.full((12,), 0.5), atol=0.001, rtol=0)


def test_too_few_samples_are_refused():
    with pytest.raises(InputError, match="n_samples is 4, too few for the scores of 5 features; give more"):
        attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="kernel_shap", n_samples=4)
    with pytest.raises(InputError, match="n_samples is 0; give at least 1"):
        attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="kernel_shap", n_samples=0)
