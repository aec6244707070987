"""A target contrasted with a foil, and which of their tokens are a pair."""

import numpy as np
import pytest
import torch

from interpret import InputError, attribute
from reference.plain_attribution import (
    FOIL,
    KINDS,
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    attributed,
    embeddings_of,
    ids_of,
    last_logits,
    prefixes,
    probability_of,
    wide_model,
)


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


@pytest.mark.parametrize("contrast", ["same_context", "own_prefix"])
def test_contrasts_of_logits_are_what_plain_autograd_gives(contrast):
    model = wide_model("llama")
    options = {"contrast": contrast, "contrast_targets": FOIL, "step_scores": ["contrast_logits"]}
    found = attributed(model, method="saliency", attributed_fn="contrast_logits_diff", **options)
    (ids, target), (foil_ids, foil) = prefixes(TARGET)[1], prefixes(FOIL)[1]
    x = embeddings_of(model, ids).requires_grad_()
    read = torch.cat([x[:, :N_PROMPT], embeddings_of(model, foil_ids)[:, N_PROMPT:]], dim=1)
    of_foil = model(inputs_embeds=x if contrast == "same_context" else read).logits[0, -1, foil]
    value = model(inputs_embeds=x).logits[0, -1, target] - of_foil
    assert found.step_scores["contrast_logits"][1] == pytest.approx(of_foil.item(), rel=1e-4)
    assert found.step_scores["contrast_logits_diff"][1] == pytest.approx(value.item(), rel=1e-4)
    expected = torch.autograd.grad(value, x)[0][0].numpy()
    np.testing.assert_allclose(found.scores[: len(ids), 1], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("contrast", ["same_context", "own_prefix"])
def test_a_foil_that_is_the_target_is_refused(contrast):
    with pytest.raises(InputError) as caught:
        attributed(attributed_fn="contrast_logits_diff", contrast=contrast, contrast_targets=TARGET)
    assert str(caught.value) == (
        "contrast_targets[0] does not differ from the text at any attributed token; give another foil"
    )
    # Of texts that differ in their first token, the same second token is a contrast of contexts.
    foil = ids_of(FOIL)[N_PROMPT : N_PROMPT + 1] + ids_of(TARGET)[-1:]
    options = {"attributed_fn": "contrast_logits_diff", "contrast_targets": [foil], "contrast": "own_prefix"}
    assert attributed(start=1, **options).step_scores["contrast_logits_diff"][0] != 0
