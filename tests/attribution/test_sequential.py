"""Sequential integrated gradients, compared with captum's for one token at a time, and with occlusion."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from interpret import InputError
from reference.plain_attribution import (
    N_PROMPT,
    TARGET,
    attributed,
    embeddings_of,
    prefixes,
    probability_of,
    wide_model,
)

METHOD = "sequential_integrated_gradients"


def one_token_at_a_time(model, ids, target, baseline, n_steps):
    """Captum's integrated gradients of each token's embedding alone, [T, D]."""
    x, start = embeddings_of(model, ids), embeddings_of(model, [baseline] * len(ids))
    found = []
    for token in range(len(ids)):
        rest = torch.arange(len(ids)) != token

        def value(own, rest=rest, token=token):
            text = torch.where(rest[:, None], x, own[:, None])
            return probability_of(model, text, target)

        method = IntegratedGradients(value)
        found.append(method.attribute(x[:, token], start[:, token], n_steps=n_steps)[0])
    return torch.stack(found).detach().numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_size", [3, 100])
def test_scores_are_captums_of_one_token_at_a_time(kind, batch_size):
    model = wide_model(kind)
    found = attributed(model, method=METHOD, n_steps=4, baseline=7, batch_size=batch_size)
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        expected = one_token_at_a_time(model, ids, target, 7, 4)
        scores = found.scores[: len(ids), step]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_the_scores_of_a_token_add_up_to_its_occlusion():
    model = wide_model("gpt2")
    found = attributed(model, method=METHOD, n_steps=30, baseline=7)
    occluded = attributed(model, method="occlusion", baseline=7)
    error = np.nansum(found.scores.sum(-1), axis=0) - np.nansum(occluded.scores, axis=0)
    np.testing.assert_allclose(found.details["delta"], error, atol=1e-5)
    atol = 1e-3 * np.nanmax(np.abs(occluded.scores))
    np.testing.assert_allclose(found.scores.sum(-1), occluded.scores, rtol=0, atol=atol)


def test_the_answer_does_not_move():
    model = wide_model("llama")
    options = {"attributed_fn": "answer_log_probability", "baseline": 7}
    found = attributed(model, method=METHOD, n_steps=30, **options).scores[:N_PROMPT, 0].sum(-1)
    occluded = attributed(model, method="occlusion", **options).scores[:N_PROMPT, 0]
    np.testing.assert_allclose(found, occluded, rtol=0, atol=2e-3 * np.abs(occluded).max())


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="n_steps is 0; give at least 1"):
        attributed(method=METHOD, n_steps=0)
