"""The log-probability of a whole answer as one attributed value, compared with full passes, autograd and captum."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients

from interpret import attribute
from interpret.attribution.run_files import attribution_of
from interpret.attribution.runs import run
from interpret.prompts.prompts import Prompt
from reference.plain_attribution import (
    N_PROMPT,
    PROMPT,
    TARGET,
    attributed,
    embeddings_of,
    ids_of,
    wide_model,
)
from reference.toy_seq2seq import toy_seq2seq

WHOLE = "answer_log_probability"
IDS = ids_of(TARGET)


def answer_log_p(model, prompt):
    """ln P of the answer's tokens for embeddings of the prompt, [B, N_PROMPT, D] -> [B]."""
    answer = embeddings_of(model, IDS[N_PROMPT:]).expand(len(prompt), -1, -1)
    logits = model(inputs_embeds=torch.cat([prompt, answer], dim=1), use_cache=False).logits
    log_p = logits[:, N_PROMPT - 1 : -1].log_softmax(-1)
    return log_p.gather(2, torch.tensor(IDS[N_PROMPT:])[None, :, None].expand(len(prompt), -1, 1)).sum((1, 2))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradient_is_that_of_the_whole_answer(kind):
    model = wide_model(kind)
    found = attributed(model, method="saliency", attributed_fn=WHOLE)
    x = embeddings_of(model, IDS[:N_PROMPT]).requires_grad_()
    value = answer_log_p(model, x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert found.tokens[N_PROMPT:] == (" the city",)
    assert found.scores.shape == (N_PROMPT + 1, 1, x.shape[-1])
    close(found.scores[:N_PROMPT, 0], slope[0].numpy())
    assert np.isnan(found.scores[N_PROMPT:]).all()
    assert found.step_scores[WHOLE] == pytest.approx(value.item(), rel=1e-5)


def test_integrated_gradients_move_only_the_prompt():
    model = wide_model("llama")
    found = attributed(model, method="integrated_gradients", attributed_fn=WHOLE, n_steps=9, baseline=7)
    x, start = embeddings_of(model, IDS[:N_PROMPT]), embeddings_of(model, [7] * N_PROMPT)
    method = IntegratedGradients(lambda x: answer_log_p(model, x))
    expected, delta = method.attribute(x, start, n_steps=9, return_convergence_delta=True)
    close(found.scores[:N_PROMPT, 0], expected[0].detach().numpy())
    assert found.details["delta"] == pytest.approx(delta.item(), abs=1e-4)


def test_occlusion_masks_only_the_prompt():
    model = wide_model("gpt2")
    found = attributed(model, method="occlusion", attributed_fn=WHOLE)
    x = embeddings_of(model, IDS[:N_PROMPT])
    masked = x * (1 - torch.eye(N_PROMPT))[:, :, None]
    with torch.no_grad():
        expected = answer_log_p(model, x) - answer_log_p(model, masked)
    close(found.scores[:N_PROMPT, 0], expected.numpy())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("gradient_shap", {"n_samples": 4, "noise": 0.1, "baseline": 7}),
        ("discretized_integrated_gradients", {"n_steps": 4}),
        ("deeplift", {"baseline": 7}),
        ("lime", {"n_samples": 20}),
    ],
)
def test_no_method_changes_the_answer(method, options):
    """An answer of other words, with the same embeddings in the table, would be a change; their scores are 0."""
    model = wide_model("llama")
    seen = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone()),
        with_kwargs=True,
    )
    found = attributed(model, method=method, attributed_fn=WHOLE, **options)
    hook.remove()
    answer = embeddings_of(model, IDS[N_PROMPT:-1])[0]
    whole = [states for states in seen if states.shape[1] == len(IDS) - 1]
    assert sum(len(states) for states in whole) > 1
    for states in whole:
        torch.testing.assert_close(states[:, N_PROMPT:], answer.expand(len(states), -1, -1))
    assert np.isfinite(found.scores[:N_PROMPT]).all()


def test_the_scores_of_one_token_are_those_of_its_log_probability():
    one = attributed(attributed_fn=WHOLE, end=1)
    other = attributed(attributed_fn="cross_entropy", end=1)
    close(one.scores[:N_PROMPT], -other.scores[:N_PROMPT])


def test_the_whole_answer_can_be_masked_in_groups():
    model = wide_model("llama")
    found = attributed(model, method="occlusion", attributed_fn=WHOLE, groups=["Eiffel Tower"])
    x, masked = embeddings_of(model, IDS[:N_PROMPT]), embeddings_of(model, IDS[:N_PROMPT])
    masked[:, 1:3] = 0
    with torch.no_grad():
        lost = (answer_log_p(model, x) - answer_log_p(model, masked)).item()
    assert found.tokens == ("The", " Eiffel Tower", " is", " in", " the city")
    assert found.scores[:4, 0] == pytest.approx([0, lost, 0, 0], abs=2e-5)


def test_a_run_adds_up_the_steps_before_it_reduces_dimensions(opened, tmp_path):
    model, tokenizer = opened
    prompt = Prompt("a", PROMPT, raw=True, target="the city of Rome")
    folder = run(
        model, tokenizer, [prompt], tmp_path / "run", attributed_fn=WHOLE, aggregate="l2", progress=False
    )  # fmt: skip
    (stored,) = attribution_of(folder).sequences
    found = attribute(model, tokenizer, PROMPT, f"{PROMPT} the city of Rome", attributed_fn=WHOLE, progress=False)
    (expected,) = found.aggregate("l2").sequences
    np.testing.assert_allclose(stored.scores, expected.scores, rtol=1e-5)
    assert {row.step for row in folder.records()} == {0}
    assert found.view().title == "Attribution of ln P(the city of Rome) by input_x_gradient"


def test_a_whole_translation_is_attributed_to_its_source():
    toy = toy_seq2seq("m2m100")
    languages = {"source_language": toy.source_language, "target_language": toy.target_language}
    both = [
        attribute(toy.model, toy.tokenizer, "I love pizza", "hello cheese", attributed_fn=fn, **languages).sequences[0]
        for fn in (WHOLE, "cross_entropy")
    ]
    whole, steps = both
    assert whole.stop - whole.start == 1
    close(whole.source_scores[:, 0], -steps.source_scores.sum(1))
