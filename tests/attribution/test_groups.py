"""Groups of tokens that are masked together: how they are found in a prompt, and their scores."""

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation

from interpret import InputError, attribute
from interpret.attribution.groups import UNITS, check_groups, token_groups
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.run_files import attribution_of
from interpret.attribution.runs import run
from interpret.attribution.steps.functions import probability
from interpret.prompts.encoding import encode
from interpret.prompts.prompts import Prompt
from reference.commands import run as run_command
from reference.masking import lime, step_of
from reference.plain_attribution import (
    N_PROMPT,
    PROMPT,
    TARGET,
    TOKENIZER,
    attributed,
    embeddings_of,
    prefixes,
    probability_of,
    wide_model,
)
from reference.toy_tokenizers import sentence_piece

TEXT = 'Dr Who is "here." He left!\nThe next line\n\nIt costs 3.5 dollars. Really?\n \n最後。二つ'


def words_of(text, groups, tokenizer=TOKENIZER):
    """Return the characters that the tokens of each group cover."""
    encoding = encode(tokenizer, text)
    spans = encoding.spans()
    found = token_groups(encoding, (0, len(text)), groups)
    return [text[spans[first][0] : spans[end - 1][1]].strip() for first, end in found]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("lines", ['Dr Who is "here." He left!', "The next line", "It costs 3.5 dollars. Really?", "最後。二つ"]),
        (
            "sentences",
            ['Dr Who is "here."', "He left!", "The next line", "It costs 3.5 dollars.", "Really?", "最後。", "二つ"],
        ),
        ("paragraphs", ['Dr Who is "here." He left!\nThe next line', "It costs 3.5 dollars. Really?", "最後。二つ"]),
    ],
)
def test_units_of_a_text_are_found(unit, expected):
    assert words_of(TEXT, unit) == expected


def test_words_are_what_spaces_separate():
    assert words_of(TEXT, "words") == TEXT.split()


def test_every_unit_has_a_test():
    assert set(UNITS) == {"words", "lines", "sentences", "paragraphs"}


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("{name} lives in {city}.", "Jane Doe lives in New York.", ["Jane Doe", "New York"]),
        ("Q: {q}\nA:", "Q: Why?\nA:", ["Why?"]),
        ("{one} and {two}", "a and b and c", ["a", "b and c"]),  # a field is as short as possible
        ("{{{x}}}", "{abc}", ["abc"]),
    ],
)
@pytest.mark.parametrize("tokenizer", [TOKENIZER, sentence_piece()], ids=["bytes", "pieces"])
def test_fields_of_a_template_are_found(template, text, expected, tokenizer):
    assert words_of(text, template, tokenizer) == expected


def test_parts_are_found_in_any_order_and_only_in_the_message():
    assert words_of("the cat saw the dog", ["dog", "cat"]) == ["cat", "dog"]
    encoding = encode(TOKENIZER, "user: the cat. user")
    ((first, end),) = token_groups(encoding, (6, 14), ["cat"])
    assert "".join(encoding.pieces()[first:end]) == " cat"
    with pytest.raises(InputError, match="group 'user' is not a part of the prompt 'the cat.'"):
        token_groups(encoding, (6, 14), ["user"])


# ------------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_occlusion_of_groups_is_captums_ablation_of_features(kind):
    model = wide_model(kind)
    found = attributed(model, method="occlusion", groups=["The Eiffel", "is in"])
    assert found.tokens == ("The Eiffel", " Tower", " is in", " the", " city")
    for step, (ids, target) in enumerate(prefixes(TARGET)):
        feature_of = torch.tensor([0, 0, 1, 2, 2, *range(3, 3 + step)])  # of each token before the step's own
        x = embeddings_of(model, ids)
        ablation = FeatureAblation(lambda x, of=target: probability_of(model, x, of))
        mask = feature_of[None, :, None].expand_as(x)
        lost = ablation.attribute(x, baselines=0, feature_mask=mask)[0, :, 0].detach().numpy()
        expected = [lost[0], 0, lost[3], *[0] * step]
        np.testing.assert_allclose(found.scores[: 3 + step, step], expected, rtol=1e-4, atol=1e-7)


def test_groups_are_recorded(tmp_path):
    found = attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="occlusion", groups=("Eiffel Tower",))
    assert found.info.options["groups"] == ["Eiffel Tower"]
    assert Attribution.load(found.save(tmp_path / "a.json")).info == found.info


def test_a_group_of_one_token_is_that_token():
    alone = attributed(method="occlusion", end=1)
    found = attributed(method="occlusion", groups="words", end=1)
    assert found.tokens == alone.tokens
    np.testing.assert_allclose(found.scores[:N_PROMPT], alone.scores[:N_PROMPT], rtol=1e-4, atol=1e-9)


def test_lime_of_groups_fits_whether_each_is_there(llama):
    """With one group, the coefficient is what its masking changes."""
    step = step_of(llama, function=probability, batch_size=8)
    grouped = step_of(llama, function=probability, batch_size=8)
    object.__setattr__(grouped, "groups", ((2, 5),))
    scores = lime(grouped, n_samples=20, penalty=0)
    x = step.embeddings.clone()
    x[:, 2:5] = step.baseline("eos")[:, 2:5]
    with torch.no_grad():
        expected = step.value(step.embeddings) - step.value(x)
    torch.testing.assert_close(scores[2].float(), expected[0], rtol=1e-4, atol=1e-7)
    assert scores.nonzero().tolist() == [[2]]


def test_a_window_of_groups_is_masked_at_once():
    model = wide_model("llama")
    found = attributed(model, method="occlusion", groups=["The Eiffel", "is in"], window=2, end=1)
    (ids, target), *_ = prefixes(TARGET)
    x, without = embeddings_of(model, ids), embeddings_of(model, ids)
    without[:, [0, 1, 3, 4]] = 0
    with torch.no_grad():
        lost = (probability_of(model, x, target) - probability_of(model, without, target)).item()
    assert found.scores[:3, 0] == pytest.approx([lost, 0, lost], rel=1e-4)
    with pytest.raises(InputError, match="window is 3; the text before token ' the' allows 1 to 2 groups"):
        attributed(model, method="occlusion", groups=["The Eiffel", "is in"], window=3, end=1)


# ---------------------------------------------------------------------------------------------------- runs, commands


def test_a_run_finds_groups_in_the_users_message(opened, tmp_path):
    model, tokenizer = opened
    prompts = [Prompt("a", "I love pizza. You hate it.", raw=False, target="yes"), Prompt("b", "Hi. No", target="yes")]
    found = run(
        model, tokenizer, prompts, tmp_path / "run", method="occlusion", groups="sentences",
        chat_template="user: {prompt} you:", progress=False,
    )  # fmt: skip
    first, second = (one.tokens for one in attribution_of(found).sequences)
    assert [token.strip() for token in first if " " in token.strip()] == ["I love pizza.", "You hate it."]
    assert [token.strip() for token in second][:2] != ["Hi.", "No"] or second[0].strip() == "Hi."
    scored = {row.token.strip() for row in found.records() if row.score}
    assert scored <= {"I love pizza.", "You hate it.", "Hi.", "No"}
    assert {"I love pizza.", "You hate it."} <= scored


def test_the_command_takes_parts_and_templates(model_folder, tmp_path, capsys):
    line = ["attribute", "--model", model_folder, "--device", "cpu", "--prompt", PROMPT, "--target", "Paris"]
    line += ["--method", "occlusion", "--steps", "0:1"]
    parts = ["--groups", "The Eiffel Tower", "--groups", "in", "--output", tmp_path / "parts"]
    assert run_command(*line, *parts) == 0
    assert run_command(*line, "--groups", "{what} is {where}", "--output", tmp_path / "template") == 0
    texts = [(tmp_path / name / "table.csv").read_text(encoding="utf-8") for name in ("parts", "template")]
    assert texts[0] == texts[1]
    assert "The Eiffel Tower" in texts[0]


# ------------------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("sentence", "groups is 'sentence'; did you mean 'sentences'? Give a unit (words, lines, sentences, "
         "paragraphs), a template such as '{name} lives in {city}', or a list of parts of the prompt"),
        ("{a}{b}", "groups: nothing separates two fields of the template '{a}{b}'; put text in between"),
        ("a {b", "groups: the template 'a {b' is not understood: expected '}' before end of string"),
        ([], "groups is []; give parts of the prompt, each of them a text that is not empty"),
        (["a", " "], "groups is ['a', ' ']; give parts of the prompt, each of them a text that is not empty"),
    ],
)  # fmt: skip
def test_groups_that_fit_no_prompt_are_refused(groups, message):
    with pytest.raises(InputError) as caught:
        check_groups(groups)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["Paris"], "group 'Paris' is not a part of the prompt 'The Eiffel Tower is in'"),
        (["i"], "group 'i' is in the prompt more than once; give more of the text around it"),
        (["Eiffel Tower", "Tower is"], "groups overlap: 'Eiffel Tower' and 'Tower is' share the token ' Tower'"),
        ("{a} was in", "groups: the template '{a} was in' does not fit the prompt 'The Eiffel Tower is in'"),
    ],
)
def test_groups_that_do_not_fit_the_prompt_are_refused(groups, message):
    with pytest.raises(InputError) as caught:
        attributed(method="occlusion", groups=groups)
    assert str(caught.value) == f"prompts[0]: {message}"


def test_methods_that_mask_nothing_take_no_groups():
    with pytest.raises(InputError, match="method 'saliency' does not mask tokens together; these take groups: occl"):
        attribute(wide_model("llama"), TOKENIZER, PROMPT, TARGET, method="saliency", groups="words")
