"""Attributions of two prompts that differ in words, aligned and subtracted."""

import numpy as np
import pytest

from interpret import InputError, attribute
from interpret.attribution.result.aligning import aligned
from interpret.attribution.run_files import attribution_of
from interpret.attribution.runs import run
from interpret.prompts.prompts import Prompt
from reference.attributions import made, made_one
from reference.commands import run as run_command
from reference.plain_attribution import PROMPT, TOKENIZER, wide_model

OTHER = "The big old Eiffel church in"


def one_of(prompt, **values):
    """A handmade input with the words of a prompt, and two tokens after it."""
    words = prompt.split()
    tokens = (words[0], *(f" {word}" for word in words[1:]), " the", " city")
    ids = (*range(10, 10 + len(words)), 1, 2)
    return made_one(tokens, len(words), token_ids=ids, **values)


def test_equal_words_correspond_and_others_are_merged():
    one, other = one_of(PROMPT), one_of(OTHER)
    first, second = aligned(one, other, 0)
    assert first.tokens == second.tokens
    assert first.tokens == ("The", " ∅ → big old", " Eiffel", " Tower is → church", " in", " the", " city")
    assert (first.n_prompt, first.start, first.stop) == (5, 5, 7)
    scores = one.scores
    expected = [scores[0], 0 * scores[0], scores[1], scores[2] + scores[3], scores[4], scores[5], scores[6]]
    np.testing.assert_allclose(first.scores, expected)
    scores = other.scores
    expected = [scores[0], scores[1] + scores[2], scores[3], scores[4], scores[5], scores[6], scores[7]]
    np.testing.assert_allclose(second.scores, expected)


def test_as_many_words_are_pairs():
    first, _ = aligned(one_of("a young doctor said"), one_of("a old nurse said"), 0)
    assert first.tokens[:4] == ("a", " young → old", " doctor → nurse", " said")


def test_the_same_prompt_is_aligned_with_itself():
    found = made(one_of(PROMPT))
    same = found.aggregate(minus=found, align=True).sequences[0]
    assert same.tokens == found.sequences[0].tokens
    assert np.nanmax(np.abs(same.scores)) == 0


def test_words_of_several_tokens_correspond_token_by_token():
    model = wide_model("llama")
    one, other = (
        attribute(model, TOKENIZER, text, f"{text} the city", method="occlusion", progress=False)
        for text in ("The Xylophone is in", "A Xylophone was in")
    )
    (found,) = one.aggregate(minus=other, align=True).sequences
    n_word = len(TOKENIZER(" Xylophone")["input_ids"])
    assert n_word > 1
    assert len(found.tokens) == len(one.sequences[0].tokens)
    assert [token for token in found.tokens if "→" in token] == ["The → A", " is → was"]
    expected = one.sequences[0].scores[1] - other.sequences[0].scores[1]
    np.testing.assert_allclose(found.scores[1], expected)
    values = [each.sequences[0].step_scores["probability"] for each in (one, other)]
    np.testing.assert_allclose(found.step_scores["probability"], values[0] - values[1])


def test_scores_of_layers_and_dimensions_are_aligned_too():
    model = wide_model("llama")
    for method in ("layer_gradient_x_activation", "input_x_gradient"):
        one, other = (
            attribute(model, TOKENIZER, text, f"{text} the city", method=method, progress=False)
            for text in (PROMPT, OTHER)
        )
        (found,) = one.aggregate(minus=other, align=True).sequences
        (first,), (second,) = one.aggregate().sequences, other.aggregate().sequences
        for key, values in found.parts().items():
            total = first.parts()[key][:5].sum(0) - second.parts()[key][: second.n_prompt].sum(0)
            np.testing.assert_allclose(values[: found.n_prompt].sum(0), total, atol=1e-6)


def test_the_command_subtracts_another_prompt(opened, model_folder, tmp_path):
    model, tokenizer = opened
    texts = ("The doctor said that", "The nurse said that")
    prompt = Prompt("a", texts[0], raw=True)
    folder = run(model, tokenizer, prompt, tmp_path / "run", versus=texts[1], new_tokens=2, progress=False)
    (stored,) = attribution_of(folder).sequences
    one = attribute(model, tokenizer, texts[0], max_new_tokens=2, progress=False)
    target = [list(one.sequences[0].token_ids[one.sequences[0].n_prompt :])]
    other = attribute(model, tokenizer, texts[1], target, progress=False)
    (expected,) = one.aggregate(minus=other, align=True).sequences
    assert " doctor → nurse" in stored.tokens
    assert stored.tokens == expected.tokens
    np.testing.assert_allclose(stored.scores, expected.scores, rtol=1e-5)
    line = ["attribute", "--model", model_folder, "--device", "cpu", "--prompt", texts[0], "--versus", texts[1]]
    line += ["--new-tokens", "2", "--output", tmp_path / "whole", "--attributed-fn", "answer_log_probability"]
    assert run_command(*line, "--html", tmp_path / "page.html") == 0
    assert "doctor → nurse" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_cannot_be_aligned_is_one_message(opened, tmp_path):
    one = made(one_of(PROMPT))
    longer = made(one_of(f"{PROMPT} an", start=7))
    with pytest.raises(InputError, match="minus has another continuation or other attributed tokens at input 0"):
        one.aggregate(minus=longer, align=True)
    with pytest.raises(InputError, match="align is for minus"):
        one.aggregate(align=True)
    with pytest.raises(InputError, match="unless align=True merges the tokens that differ"):
        one.aggregate(minus=made(one_of(OTHER)))
    prompts = [Prompt("a", PROMPT, raw=True), Prompt("b", OTHER, raw=True)]
    with pytest.raises(InputError, match="versus is for a single prompt; leave it out"):
        run(*opened, prompts, tmp_path / "run", versus=OTHER)
