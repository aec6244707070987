"""Functions of passes with dropout, and models in training mode."""

import copy

import numpy as np
import pytest
import torch

from interpret import InputError
from reference.plain_attribution import (
    TARGET,
    attributed,
    embeddings_of,
    prefixes,
    probability_of,
    wide_model,
)


@pytest.fixture
def dropping():
    """A GPT-2 with dropout in one layer."""
    model = copy.deepcopy(wide_model("gpt2"))
    model.transformer.h[1].mlp.dropout.p = 0.3
    return model.eval()


def test_dropout_gives_mean_deviation_and_z_apart(dropping):
    state = torch.get_rng_state()
    found = attributed(dropping, step_scores=["mc_dropout_prob_avg"], n_mcd_steps=6, seed=5).step_scores
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in dropping.modules())
    ids, target = prefixes(TARGET)[0]
    torch.manual_seed(5)
    dropping.train()
    with torch.no_grad():
        p = torch.stack([probability_of(dropping, embeddings_of(dropping, ids), target) for _ in range(6)])
    assert found["mc_dropout_mean"][0] == pytest.approx(p.mean().item(), rel=1e-4)
    assert found["mc_dropout_std"][0] == pytest.approx(p.std().item(), rel=1e-3)
    assert found["mc_dropout_std"][0] > 0
    expected = (found["probability"][0] - p.mean().item()) / p.std().item()
    assert found["mc_dropout_z"][0] == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_dropout_can_be_attributed(dropping):
    found = attributed(dropping, attributed_fn="mc_dropout_mean", method="saliency", n_mcd_steps=3, seed=5).scores
    ids, target = prefixes(TARGET)[0]
    x = embeddings_of(dropping, ids).requires_grad_()
    dropping.train()
    torch.manual_seed(5)
    value = sum(probability_of(dropping, x, target) for _ in range(3)) / 3
    expected = torch.autograd.grad(value.sum(), x)[0][0].numpy()
    np.testing.assert_allclose(found[: len(ids), 0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_mode_of_each_module_is_restored_after_an_exception(dropping):
    dropping.transformer.h[0].mlp.dropout.train()  # a mixed model stays mixed
    modes = [module.training for module in dropping.modules()]
    handle = dropping.transformer.register_forward_hook(lambda module, *_: 1 / 0 if module.training else None)
    with pytest.raises(ZeroDivisionError):
        attributed(dropping, step_scores=["mc_dropout_mean"])
    handle.remove()
    assert [module.training for module in dropping.modules()] == modes


@pytest.mark.parametrize(
    ("n", "message"),
    [
        (1, "n_mcd_steps is 1; a standard deviation needs at least 2 passes"),
        (2, "this model has no dropout: passes in training mode do not differ; use 'probability'"),
    ],
)
def test_dropout_without_dropout_is_an_error(n, message):
    with pytest.raises(InputError) as error:
        attributed(step_scores=["mc_dropout_std"], n_mcd_steps=n)
    assert str(error.value) == message
    assert not wide_model("llama").training


def test_a_model_in_training_mode_is_refused_and_stays_in_it(dropping):
    dropping.train()
    with pytest.raises(InputError, match=r"^the model is in training mode"):
        attributed(dropping)
    assert dropping.training
