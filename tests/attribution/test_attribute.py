"""The ``attribute`` call: texts, generated and given text, errors, memory."""

import copy
import re

import numpy as np
import pytest
import torch

from interpret import InputError, UnsupportedModelError, attribute
from interpret.anatomy import check_logits
from interpret.attribution import list_methods, list_step_functions
from interpret.attribution.methods.registry import METHODS
from interpret.engine.greedy import write_after
from reference.memory import only_new_objects, tensor_bytes
from reference.plain_attribution import (
    FOIL,
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    attributed,
    embeddings_of,
    ids_of,
    probability_of,
    wide_model,
)
from reference.tiny import hooks_on
from reference.toy_tokenizers import sentence_piece


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


def test_a_model_of_no_known_family_is_refused():
    from transformers import CTRLConfig, CTRLLMHeadModel

    model = CTRLLMHeadModel(CTRLConfig(vocab_size=450, n_embd=8, dff=8, n_layer=1, n_head=2)).eval()
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
