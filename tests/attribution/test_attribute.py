"""The ``attribute`` call: step functions in closed form, contrasts, generated and given text, errors, memory."""

import copy
import re

import numpy as np
import pytest
import torch

from interpret import InputError, UnsupportedModelError, attribute
from interpret.anatomy import check_logits
from interpret.attribution import list_methods, list_step_functions, register_step_function
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.steps.functions import FUNCTIONS
from interpret.engine.greedy import write_after
from reference.memory import only_new_objects, tensor_bytes
from reference.plain_attribution import (
    FOIL,
    KINDS,
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    embeddings_of,
    ids_of,
    prefixes,
    probability_of,
    wide_model,
)
from reference.tiny import hooks_on
from reference.toy_tokenizers import sentence_piece


def attributed(model=None, targets=TARGET, **options):
    model = wide_model("llama") if model is None else model
    (one,) = attribute(model, TOKENIZER, PROMPT, targets, **options).sequences
    return one


def last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].double()


# ------------------------------------------------------------------------------------------------- functions


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


# ------------------------------------------------------------------------------------------------- contrasts


def contrasted(model, contrast, **options):
    return attributed(model, attributed_fn="contrast_prob_diff", contrast=contrast, contrast_targets=FOIL, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("contrast", ["same_context", "own_prefix"])
def test_contrasts_of_two_tokens_are_what_plain_autograd_gives(kind, contrast):
    model = wide_model(kind)
    found = contrasted(model, contrast, method="saliency")
    for step, ((ids, target), (foil_ids, foil)) in enumerate(zip(prefixes(TARGET), prefixes(FOIL), strict=True)):
        x = embeddings_of(model, ids).requires_grad_()
        read = x
        if contrast == "own_prefix":
            read = torch.cat([x[:, :N_PROMPT], embeddings_of(model, foil_ids)[:, N_PROMPT:]], dim=1)
        value = probability_of(model, x, target) - probability_of(model, read, foil)
        assert found.step_scores["contrast_prob_diff"][step] == pytest.approx(value.item(), rel=1e-3, abs=1e-7)
        expected = torch.autograd.grad(value.sum(), x)[0][0].numpy()
        np.testing.assert_allclose(found.scores[: len(ids), step], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_two_meanings_differ_once_the_texts_have_parted():
    model = wide_model("llama")
    same, own = (contrasted(model, mode).step_scores["contrast_prob_diff"] for mode in ("same_context", "own_prefix"))
    assert same[0] == own[0]
    assert same[1] != own[1]


def test_a_contrast_can_be_reported_beside_another_function():
    model = wide_model("llama")
    options = {"step_scores": ["contrast_prob_diff"], "contrast": "own_prefix", "contrast_targets": FOIL}
    found = attribute(model, TOKENIZER, PROMPT, TARGET, attributed_fn="logit", **options)
    assert found.info.contrast == "own_prefix"
    np.testing.assert_array_equal(
        found.sequences[0].step_scores["contrast_prob_diff"],
        contrasted(model, "own_prefix").step_scores["contrast_prob_diff"],
    )


SHORT = f"{PROMPT} extra"


def test_a_foil_of_another_length_needs_an_alignment():
    options = {"attributed_fn": "contrast_prob_diff", "contrast": "own_prefix", "contrast_targets": SHORT}
    with pytest.raises(InputError) as error:
        attributed(**options)
    assert str(error.value) == (
        "contrast_targets[0] has 1 tokens after the prompt, the text 2: give an alignment, such as "
        "alignment=[[(0, 0)]], pairs (step, step of the foil), or attribute only the first token, with end=1"
    )
    model = wide_model("llama")
    found = attributed(model, alignment=[[(0, 0), (1, 0)]], **options).step_scores["contrast_prob_diff"]
    (first, target), (second, other) = prefixes(TARGET)
    foil = ids_of(SHORT)[-1]
    p_foil = last_logits(model, first).softmax(-1)[foil]
    assert found[0] == pytest.approx((last_logits(model, first).softmax(-1)[target] - p_foil).item(), rel=1e-3)
    assert found[1] == pytest.approx((last_logits(model, second).softmax(-1)[other] - p_foil).item(), rel=1e-3)


def test_an_alignment_that_is_given_goes_before_that_of_the_first_tokens():
    options = {"attributed_fn": "contrast_prob_diff", "contrast": "same_context", "contrast_targets": FOIL}
    found = attributed(end=1, alignment=[[(0, 1)]], **options)
    assert found.foil_tokens == (TOKENIZER.decode(ids_of(FOIL)[-1:]),)


@pytest.mark.parametrize("contrast", ["same_context", "own_prefix"])
def test_the_first_tokens_of_texts_of_different_lengths_are_a_pair(contrast):
    options = {"attributed_fn": "contrast_prob_diff", "contrast": contrast, "contrast_targets": SHORT}
    found = attributed(end=1, **options)
    ids, target = prefixes(TARGET)[0]
    p = last_logits(wide_model("llama"), ids).softmax(-1)
    (value,) = found.step_scores["contrast_prob_diff"]
    assert value == pytest.approx((p[target] - p[ids_of(SHORT)[-1]]).item(), rel=1e-3)
    np.testing.assert_array_equal(found.scores, attributed(alignment=[[(0, 0)]], end=1, **options).scores)
    assert found.foil_tokens == (" extra",)
    assert attributed().foil_tokens is None


def test_a_prompt_that_ends_in_the_middle_of_a_token_is_an_error():
    with pytest.raises(InputError) as error:
        attribute(wide_model("llama"), TOKENIZER, f"{PROMPT} ", TARGET)
    assert str(error.value) == (
        "targets[0] 'The Eiffel Tower is in the city' does not continue the tokens of its prompt 'The Eiffel Tower is "
        "in ': the tokenizer merges the end of the prompt with what follows; end the prompt at a word boundary, "
        "without a trailing space, or give token ids"
    )


@pytest.mark.parametrize("prompt", [None, [3, 1]])
def test_a_prompt_that_is_not_a_string_is_an_error(prompt):
    with pytest.raises(InputError, match=r"^prompts\[0\] is .*; give a string$"):
        attribute(wide_model("llama"), TOKENIZER, [prompt])


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ([[(0, 0)]], "alignment[0] has no pair for step 1; add one, or exclude the step with start and end"),
        (
            [[(0, 0), (1, 1)]],
            "alignment[0] has the pair (1, 1); the text has steps 0 to 1, its foil 0 to 0",
        ),
        ([[(0, 0), (0, 0)]], "alignment[0] lists a step of the text twice; give one pair per step"),
        ([], "alignment has 0 entries for 1 prompts; give one for each"),
    ],
)
def test_a_wrong_alignment_is_an_error(alignment, message):
    with pytest.raises(InputError) as error:
        attributed(
            attributed_fn="contrast_prob_diff", contrast="own_prefix", contrast_targets=SHORT, alignment=alignment
        )
    assert str(error.value) == message


# --------------------------------------------------------------------------------------------------- dropout


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


# ----------------------------------------------------------------------------- which tokens, generated or given


def test_what_the_model_writes_is_attributed_as_if_it_had_been_given():
    model = wide_model("gpt2")
    prompts = [PROMPT, "I love"]
    found = attribute(model, TOKENIZER, prompts, max_new_tokens=3)
    for one, prompt in zip(found.sequences, prompts, strict=True):
        written = write_after(model, [ids_of(prompt)], 3)[0].ids
        assert one.token_ids == (*ids_of(prompt), *written)
        assert (one.n_prompt, one.start, one.stop) == (len(ids_of(prompt)), len(ids_of(prompt)), len(one.tokens))
        x = embeddings_of(model, list(one.token_ids[:-1])).requires_grad_()
        (slope,) = torch.autograd.grad(probability_of(model, x, one.token_ids[-1]).sum(), x)
        np.testing.assert_allclose(one.scores[:-1, -1], (x * slope)[0].detach(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (1, None), (-1, None), (None, -1)])
def test_a_span_of_steps_is_a_slice_of_the_whole(start, end):
    whole, part = attributed(), attributed(start=start, end=end)
    steps = range(2)[start:end]
    assert (part.start, part.stop) == (N_PROMPT + steps.start, N_PROMPT + steps.stop)
    np.testing.assert_allclose(part.scores, whole.scores[:, steps.start : steps.stop], rtol=1e-4, atol=1e-9)
    assert part.step_scores["probability"] == pytest.approx(whole.step_scores["probability"][steps.start : steps.stop])


def test_tokenizers_that_open_a_text_with_a_special_token_are_read_as_they_are():
    model, tokenizer = wide_model("llama"), sentence_piece()
    (one,) = attribute(model, tokenizer, "The Eiffel", "The Eiffel Tower").sequences
    assert one.tokens[0] == "<s>"
    assert list(one.token_ids) == tokenizer("The Eiffel Tower")["input_ids"]


# ---------------------------------------------------------------------------------------------------- errors


CONTRAST = {"attributed_fn": "contrast_prob_diff"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": "Paris"},
            "targets[0] 'Paris' does not begin with its prompt 'The Eiffel Tower is in': give both in one text, as "
            "'The Eiffel Tower is in Paris'",
        ),
        ({"targets": [None]}, "targets[0] is None; give a string, or a list of token ids"),
        (
            {"targets": f"{PROMPT}{' the city' * 40}"},
            "targets[0] has 85 tokens; this model reads at most 64",
        ),
        (
            {**CONTRAST, "contrast": "own_prefix", "contrast_targets": f"{PROMPT}{' the city' * 40}", "end": 1},
            "contrast_targets[0] has 85 tokens; this model reads at most 64",
        ),
        (
            {"targets": None, "max_new_tokens": 64},
            "prompts[0] has 5 tokens; with 64 new tokens it exceeds the 64 that this model reads",
        ),
        (
            {"targets": PROMPT},
            "targets[0] 'The Eiffel Tower is in' has no tokens after its prompt; there is nothing to attribute",
        ),
        ({"targets": [TARGET] * 2}, "targets has 2 entries for 1 prompts; give one for each"),
        ({"start": 2}, "prompts[0]: start=2 and end=None select none of the 2 tokens after the prompt"),
        (
            {"method": "saliancy"},
            f"unknown method 'saliancy'; did you mean 'saliency'? Allowed: {', '.join(list_methods())}",
        ),
        (
            {"attributed_fn": "probabilty"},
            "unknown step function 'probabilty'; did you mean 'probability'? Allowed: "
            f"{', '.join([*list_step_functions(), 'crossentropy', 'mc_dropout_prob_avg'])}",
        ),
        ({"layers": [1], "method": "saliency"}, "method 'saliency' takes no layers; leave layers out, or use a "
            "layer method"),
        (
            {"contrast_targets": FOIL},
            "no function uses the contrast: give 'contrast_prob_diff' as attributed_fn or step score",
        ),
        ({**CONTRAST}, "'contrast_prob_diff' needs contrast_targets"),
        (
            {**CONTRAST, "contrast_targets": FOIL},
            "'contrast_prob_diff' needs contrast='same_context' (the foil is predicted from the target's prefix) "
            "or contrast='own_prefix' (it is predicted from its own prefix)",
        ),
        (
            {**CONTRAST, "contrast_targets": FOIL, "contrast": "same_contxt"},
            "unknown contrast 'same_contxt'; did you mean 'same_context'? Allowed: same_context, own_prefix",
        ),
        (
            {"method": "integrated_gradients", "basline": "mean"},
            "method 'integrated_gradients': unknown option 'basline'; did you mean 'baseline'? Allowed: n_steps, "
            "baseline",
        ),
        (
            {"attributed_fn": "mc_dropout_mean", "step_scores": ["mc_dropout_std"], "n_passes": 3},
            "method 'input_x_gradient': unknown option 'n_passes'; Allowed: n_mcd_steps, seed",
        ),
        ({"alignment": [[(0, 0)]]}, "alignment needs contrast_targets; give those too"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give at least 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(options, message):
    with pytest.raises(InputError) as error:
        attributed(**options)
    assert str(error.value) == message


def test_texts_as_long_as_the_model_reads_are_attributed():
    target = f"{PROMPT}{' the city' * 29} the"
    assert len(ids_of(target)) == 64 == wide_model("llama").config.max_position_embeddings
    assert len(attributed(targets=target, end=1).tokens) == 64
    new = attributed(targets=None, max_new_tokens=64 - N_PROMPT).tokens
    assert N_PROMPT < len(new) <= 64


def test_texts_that_do_not_fit_are_found_before_anything_is_attributed():
    model, passes = wide_model("llama"), []
    handle = model.base_model.register_forward_hook(lambda *event: passes.append(1))
    check_logits(model)  # made once per model
    passes.clear()
    with pytest.raises(InputError, match=r"^targets\[2\] "):
        attribute(model, TOKENIZER, [PROMPT] * 3, [TARGET, TARGET, "Paris"], batch_size=1)
    handle.remove()
    assert not passes


@pytest.mark.parametrize("name", list_methods())
def test_every_option_of_a_method_is_documented(name):
    documented = attribute.__doc__.partition("**options:")[2].partition("Returns:")[0]
    assert all(f"``{option}``" in documented for option in METHODS[name].options())


def test_no_prompt_is_an_error():
    with pytest.raises(InputError, match=r"^there is no prompt: give at least one$"):
        attribute(wide_model("llama"), TOKENIZER, [])


def test_a_model_in_training_mode_is_refused_and_stays_in_it(dropping):
    dropping.train()
    with pytest.raises(InputError, match=r"^the model is in training mode"):
        attributed(dropping)
    assert dropping.training


def test_a_model_without_gradients_is_refused():
    message = (
        r"^no gradient is available: the model was created, or is called, under torch\.inference_mode\(\); "
        r"use torch\.no_grad\(\) there instead$"
    )
    with torch.inference_mode():
        made = copy.deepcopy(wide_model("gpt2"))
        with pytest.raises(InputError, match=message):
            attributed()
    with pytest.raises(InputError, match=message):
        attributed(made)


def test_frozen_weights_do_no_harm():
    model = copy.deepcopy(wide_model("gpt2")).requires_grad_(False)
    np.testing.assert_array_equal(attributed(model).scores, attributed(wide_model("gpt2")).scores)


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


def test_a_model_of_no_known_family_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=450, hidden_size=8, n_layer=1, n_head=2)).eval()
    with pytest.raises(UnsupportedModelError, match="is not of a supported family"):
        attributed(model, method="layer_gradient_x_activation")


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("method", ["input_x_gradient", "layer_gradient_x_activation"])
def test_memory_does_not_grow_with_the_number_of_inputs(method):
    peaks = {}
    with only_new_objects():
        model = copy.deepcopy(wide_model("llama"))
        for n_inputs in (2, 8):
            peak = []
            handle = model.base_model.register_forward_hook(lambda *event, peak=peak: peak.append(tensor_bytes()))
            found = attribute(model, TOKENIZER, [PROMPT] * n_inputs, batch_size=2, max_new_tokens=2, method=method)
            handle.remove()
            assert len(found.sequences) == n_inputs
            peaks[n_inputs] = max(peak)
    assert peaks[8] <= peaks[2] * 1.01
    assert not hooks_on(model)


def test_a_target_whose_prompt_only_looks_alike_is_refused_with_what_differs():
    message = (
        "targets[0] 'The Eiffel  Tower is in' does not begin with its prompt 'The Eiffel Tower'; "
        "it has 'The Eiffel  Tower', which differs in its spaces"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        attribute(wide_model("gpt2"), TOKENIZER, "The Eiffel Tower", "The Eiffel  Tower is in")


@pytest.mark.parametrize("longer", [False, True])
def test_a_foil_whose_text_is_a_beginning_of_the_targets_or_goes_on_changes_with_it(longer):
    """Steps whose foil is predicted after fewer or more tokens of the same text, against plain autograd."""
    model = wide_model("llama")
    foils, pairs = (TARGET, [(0, 1), (1, 1)]) if longer else (SHORT, [(0, 0), (1, 0)])
    options = {"attributed_fn": "contrast_prob_diff", "contrast": "own_prefix", "contrast_targets": foils}
    found = attributed(model, method="saliency", alignment=[pairs], **options)
    step = 0 if longer else 1
    ids, target = prefixes(TARGET)[step]
    foil_ids, foil = prefixes(foils)[pairs[step][1]]
    assert len(foil_ids) == len(ids) + (1 if longer else -1)
    assert foil_ids[: len(ids)] == ids[: len(foil_ids)]
    x = embeddings_of(model, ids).requires_grad_()
    read = torch.cat([x, embeddings_of(model, foil_ids)[:, len(ids) :]], dim=1)[:, : len(foil_ids)]
    value = probability_of(model, x, target) - probability_of(model, read, foil)
    assert found.step_scores["contrast_prob_diff"][step] == pytest.approx(value.item(), rel=1e-3, abs=1e-7)
    expected = torch.autograd.grad(value.sum(), x)[0][0].numpy()
    np.testing.assert_allclose(found.scores[: len(ids), step], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_probabilities_of_a_half_precision_model_are_float32():
    """The logits are bfloat16, as the model computes them; what is read from them is not rounded again."""
    model = copy.deepcopy(wide_model("llama")).to(torch.bfloat16)
    found = attributed(model, step_scores=["probability", "entropy"]).step_scores
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        with torch.no_grad():
            p = model(inputs_embeds=embeddings_of(model, ids)).logits[0, -1].double().softmax(-1)
        assert found["probability"][step] == pytest.approx(p[target].item(), rel=1e-4)
        assert found["entropy"][step] == pytest.approx(-(p * p.log()).sum().item(), rel=1e-4)
