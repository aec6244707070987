"""Functions of a user, given to ``attribute`` as they are, without a name."""

import re

import numpy as np
import pytest
import torch

from interpret import InputError, attribute
from interpret import attribution as attribution_package
from interpret.attribution import list_step_functions
from reference.plain_attribution import (
    FOIL,
    PROMPT,
    TARGET,
    TOKENIZER,
    embeddings_of,
    ids_of,
    prefixes,
    wide_model,
)


def third_logit(reading, *, power=2):
    return reading.logits[:, 3] ** power


def logit_difference(reading):
    return reading.logits[:, reading.target] - reading.foil_logits[:, reading.foil]


def attributed(**options):
    return attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="saliency", **options)


def test_a_function_is_attributed_with_its_options():
    model = wide_model("llama")
    found = attributed(attributed_fn=third_logit, power=3)
    assert (found.info.attributed_fn, found.info.unit, found.info.options) == ("third_logit", "", {"power": 3})
    assert "third_logit" not in list_step_functions()
    (one,) = found.sequences
    for step, (ids, _) in enumerate(prefixes(TARGET)):
        x = embeddings_of(model, ids).requires_grad_()
        value = model(inputs_embeds=x).logits[0, -1, 3] ** 3
        assert one.step_scores["third_logit"][step] == pytest.approx(value.item(), rel=1e-4)
        expected = torch.autograd.grad(value, x)[0][0].numpy()
        np.testing.assert_allclose(one.scores[: len(ids), step], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_functions_are_reported_beside_names():
    (one,) = attributed(step_scores=["entropy", third_logit]).sequences
    assert list(one.step_scores) == ["probability", "entropy", "third_logit"]
    (alone,) = attributed(step_scores=third_logit).sequences
    np.testing.assert_array_equal(alone.step_scores["third_logit"], one.step_scores["third_logit"])


def test_a_function_gets_the_foil_of_contrast_targets():
    model, first_foil = wide_model("llama"), ids_of(FOIL)[len(ids_of(PROMPT))]
    (one,) = attributed(attributed_fn=logit_difference, contrast_targets=FOIL, contrast="same_context", end=1).sequences
    ids, target = prefixes(TARGET)[0]
    logits = model(torch.tensor([ids])).logits[0, -1]
    expected = (logits[target] - logits[first_foil]).item()
    assert one.step_scores["logit_difference"][0] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(InputError, match=r"^'logit_difference' needs contrast='same_context'"):
        attributed(attributed_fn=logit_difference, contrast_targets=FOIL)


def test_a_result_with_a_function_is_stored_and_merged(tmp_path):
    found = attributed(attributed_fn=third_logit)
    loaded = type(found).load(found.save(tmp_path / "out.json"))
    assert loaded.info == found.info
    n_prompt, n_tokens = len(ids_of(PROMPT)), len(ids_of(TARGET))
    (merged,) = found.aggregate(spans=[[(n_prompt, n_tokens)]]).sequences
    (one,) = found.sequences
    assert merged.step_scores["third_logit"] == pytest.approx([one.step_scores["third_logit"].mean()])


def probability(reading):
    return reading.logits[:, 0]


def crossentropy(reading):
    return reading.logits[:, 0]


@pytest.mark.parametrize("fn", [probability, crossentropy])
def test_a_name_that_belongs_to_another_function_is_an_error(fn):
    with pytest.raises(InputError, match=f"^another step function has the name '{fn.__name__}'; rename yours$"):
        attributed(attributed_fn=fn)


def test_two_functions_of_one_name_are_an_error():
    with pytest.raises(InputError, match=r"^another step function has the name '<lambda>'; rename yours$"):
        attributed(step_scores=[lambda reading: reading.logits[:, 0], lambda reading: reading.logits[:, 1]])


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda: 1, "step function '<lambda>' does not take a reading"),
        (lambda reading, power=2: reading.logits, "step function '<lambda>' has the parameter 'power'"),
    ],
)
def test_a_function_of_another_form_is_an_error(fn, said):
    with pytest.raises(InputError, match="^" + re.escape(said)):
        attributed(attributed_fn=fn)


@pytest.mark.parametrize("option", ["attributed_fn", "step_scores"])
def test_a_run_wants_the_name_of_a_registered_function(option, tmp_path):
    rows = [{"prompt": PROMPT, "target": " the"}]
    value = third_logit if option == "attributed_fn" else [third_logit]
    with pytest.raises(InputError, match=r"^'third_logit' is a function, but tables record names: register it by "):
        attribution_package.run(wide_model("llama"), TOKENIZER, rows, tmp_path / "run", **{option: value})
    assert not (tmp_path / "run").exists()
