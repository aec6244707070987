"""Functions that are attributed or reported: closed forms, and functions that a user registers."""

import copy

import numpy as np
import pytest
import torch

from interpret import InputError, attribute
from interpret.attribution import list_step_functions, register_step_function
from interpret.attribution.steps.functions import FUNCTIONS
from reference.plain_attribution import (
    KINDS,
    PROMPT,
    TARGET,
    TOKENIZER,
    attributed,
    embeddings_of,
    last_logits,
    prefixes,
    wide_model,
)


@pytest.mark.parametrize("kind", KINDS)
def test_step_scores_have_their_closed_forms(kind):
    model = wide_model(kind)
    names = ["logit", "probability", "entropy", "crossentropy", "perplexity"]
    found = attributed(model, step_scores=names).step_scores
    assert list(found) == ["probability", "logit", "entropy", "cross_entropy", "perplexity"]
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        logits = last_logits(model, ids)
        p = logits.softmax(-1)
        expected = {
            "logit": logits[target],
            "probability": p[target],
            "entropy": -(p * p.log()).sum(),
            "cross_entropy": -p[target].log(),
            "perplexity": 1 / p[target],
        }
        for name, value in expected.items():
            assert found[name][step] == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("name", ["logit", "entropy", "cross_entropy", "perplexity"])
def test_every_function_can_be_attributed(name):
    model, found = wide_model("gpt2"), attributed(wide_model("gpt2"), attributed_fn=name, method="saliency").scores
    ids, target = prefixes(TARGET)[1]
    x = embeddings_of(model, ids).requires_grad_()
    logits = model(inputs_embeds=x).logits[0, -1]
    p = logits.softmax(-1)
    value = {
        "logit": logits[target],
        "entropy": -(p * p.log()).sum(),
        "cross_entropy": -p[target].log(),
        "perplexity": 1 / p[target],
    }[name]
    expected = torch.autograd.grad(value, x)[0][0].numpy()
    np.testing.assert_allclose(found[: len(ids), 1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_entropy_is_finite_where_probabilities_vanish():
    logits = torch.tensor([[0.0, -1e4, -float("inf")]])
    reading = type("Reading", (), {"logits": logits})
    assert FUNCTIONS["entropy"].fn(reading).item() == 0


def test_units_are_in_the_info():
    info = attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, step_scores=["entropy", "crossentropy"]).info
    assert info.unit == "probability"
    assert info.step_units == {"probability": "probability", "entropy": "nats", "cross_entropy": "nats"}


@pytest.fixture
def _own_function():
    register_step_function(lambda reading, *, power=2: reading.logits[:, 3] ** power, "third", aggregate="sum")
    yield
    del FUNCTIONS["third"]


@pytest.mark.usefixtures("_own_function")
def test_a_function_of_ones_own_is_attributed_and_reported():
    model = wide_model("llama")
    assert "third" in list_step_functions()
    found = attributed(model, attributed_fn="third", method="saliency", power=3)
    ids, _ = prefixes(TARGET)[0]
    x = embeddings_of(model, ids).requires_grad_()
    value = model(inputs_embeds=x).logits[0, -1, 3] ** 3
    assert found.step_scores["third"][0] == pytest.approx(value.item(), rel=1e-4)
    expected = torch.autograd.grad(value, x)[0][0].numpy()
    np.testing.assert_allclose(found.scores[: len(ids), 0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_function_without_a_gradient_is_an_error():
    register_step_function(lambda reading: reading.logits[:, 0].detach(), "cut")
    try:
        with pytest.raises(InputError, match=r"^the attributed function has no gradient: compute it from "):
            attributed(attributed_fn="cut")
    finally:
        del FUNCTIONS["cut"]


@pytest.mark.usefixtures("_own_function")
def test_a_function_can_be_registered_again_as_by_a_cell_that_is_run_twice():
    def another(reading):
        return reading.logits[:, 4]

    with pytest.raises(InputError, match=r"^step function 'third' already exists; choose another name, or give overw"):
        register_step_function(another, "third")
    register_step_function(another, "third", overwrite=True)
    (ids, _), *_ = prefixes(TARGET)
    found = attributed(step_scores="third").step_scores
    assert list(found) == ["probability", "third"], "one name alone is a list of it"
    assert found["third"][0] == pytest.approx(last_logits(wide_model("llama"), ids)[4].item(), rel=1e-4)
    with pytest.raises(InputError, match=r"^step function 'logit' already exists; choose another name$"):
        register_step_function(another, "logit", overwrite=True)


@pytest.mark.usefixtures("_own_function")
@pytest.mark.parametrize(
    ("fn", "found"),
    [
        (lambda reading: reading.logits.max().item(), r"-?\d.*"),
        (lambda reading: reading.logits.softmax(-1)[0, reading.target], r"a tensor of shape \[\]"),
        (lambda reading: reading.logits[:, reading.foil], r"a tensor of shape \[1, 1, 450\]"),
    ],
)
@pytest.mark.parametrize("method", ["input_x_gradient", "occlusion"])
def test_a_function_that_does_not_give_a_value_a_row_is_an_error(fn, found, method):
    register_step_function(fn, "third", overwrite=True)
    with pytest.raises(InputError, match=rf"^step function 'third' returned {found}; expected a tensor of shape \[1\]"):
        attributed(attributed_fn="third", method=method)


@pytest.mark.parametrize("fn", [lambda reading, power=2: reading.logits, lambda reading, *, power: reading.logits])
def test_an_option_that_could_not_be_given_is_an_error(fn):
    with pytest.raises(
        InputError, match=r"^step function 'raised' has the parameter 'power'; options must be keyword-only"
    ):
        register_step_function(fn, "raised")
    assert "raised" not in FUNCTIONS


@pytest.mark.parametrize("fn", [lambda: 1, lambda *, reading: reading.logits, lambda **given: given])
def test_a_function_that_takes_no_reading_is_an_error(fn):
    with pytest.raises(InputError, match=r"^step function 'raised' does not take a reading; define it as def fn\("):
        register_step_function(fn, "raised")
    assert "raised" not in FUNCTIONS


@pytest.mark.usefixtures("_own_function")
@pytest.mark.parametrize(
    "fn", [lambda reading, *more, **others: reading.logits[:, 4], lambda *given: given[0].logits[:, 4]]
)
def test_parameters_that_need_nothing_do_no_harm(fn):
    register_step_function(fn, "third", overwrite=True)
    assert attributed(step_scores="third").step_scores["third"].shape == (2,)


def test_a_name_is_registered_once():
    with pytest.raises(InputError, match=r"^step function 'logit' already exists; choose another name$"):
        register_step_function(lambda reading: reading.logits[:, 0], "logit")
    with pytest.raises(InputError, match=r"^unknown aggregate 'max'; Allowed: sum, mean, product$"):
        register_step_function(lambda reading: reading.logits[:, 0], "another", aggregate="max")


def test_probabilities_of_a_half_precision_model_are_float32():
    """The logits are bfloat16, as the model computes them; what is read from them is not rounded again."""
    model = copy.deepcopy(wide_model("llama")).to(torch.bfloat16)
    found = attributed(model, step_scores=["probability", "entropy"]).step_scores
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        with torch.no_grad():
            p = model(inputs_embeds=embeddings_of(model, ids)).logits[0, -1].double().softmax(-1)
        assert found["probability"][step] == pytest.approx(p[target].item(), rel=1e-4)
        assert found["entropy"][step] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-4)
