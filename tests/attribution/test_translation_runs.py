"""``interpret attribute`` with translation models: loaded from a folder, with scores of source and target."""

import numpy as np
import pytest

import interpret
from interpret.attribution.result.attribution import Attribution
from interpret.models.opening import load
from interpret.records import TokenScore
from interpret.storage import run_folder
from reference.commands import json_file, run
from reference.toy_translation import KINDS, toy_translation

TEXT, TRANSLATION = "I love eating pizza.", "hello cheese"
# The toy pieces fall back on bytes, NLLB's do not.
_FALLBACK = pytest.mark.filterwarnings("ignore:The sentencepiece tokenizer that you are converting to a fast")
# It matters to punctuation, which is the same in both runs that are compared.
_MOSES = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
pytestmark = [_FALLBACK, _MOSES]


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """A folder with a translation model, and the options that name its languages."""
    toy, folder = toy_translation(request.param), tmp_path_factory.mktemp(request.param)
    toy.model.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    languages = {"source_language": toy.source_language, "target_language": toy.target_language}
    return folder, {name: code for name, code in languages.items() if code is not None}


def attribute(folder, *argv):
    return run("attribute", "--model", folder, "--device", "cpu", *argv)


def flags(languages):
    return [word for name, code in languages.items() for word in (f"--{name.replace('_', '-')}", code)]


def test_the_table_distinguishes_source_and_translation(saved, tmp_path, capsys):
    folder, languages = saved
    argv = ["--prompt", TEXT, "--target", TRANSLATION, "--output", tmp_path / "run", *flags(languages)]
    assert attribute(folder, *argv) == 0
    (one,) = interpret.attribute(*load(folder, device="cpu"), TEXT, TRANSLATION, **languages).aggregate().sequences
    rows = run_folder.read_table(tmp_path / "run", TokenScore)
    for step, column in enumerate(range(one.start, one.stop)):
        of_step = [row for row in rows if row.step == step]
        assert {row.step_position for row in of_step} == {column}
        for in_prompt, tokens, scores in (
            (True, one.source_tokens, one.source_scores),
            (False, one.tokens[:column], one.scores[:column]),
        ):
            side = [row for row in of_step if row.in_prompt == in_prompt]
            assert [(row.position, row.token) for row in side] == list(enumerate(tokens))
            assert [row.score for row in side] == scores[:, step].tolist()
    shown = capsys.readouterr().out
    assert "source " in shown
    assert "target " in shown


def test_what_the_model_writes_is_attributed_in_a_file_of_prompts(saved, tmp_path):
    folder, languages = saved
    entries = [{"prompt": text, "category": "text"} for text in (TEXT, "The Eiffel Tower")]
    prompts = json_file(tmp_path / "prompts.json", {"examples": entries})
    argv = ["--examples", prompts, "--output", tmp_path / "run", "--new-tokens", 3]
    argv += ["--json", tmp_path / "out.json", "--html", tmp_path / "page.html", *flags(languages)]
    assert attribute(folder, *argv) == 0
    opened = load(folder, device="cpu")
    for one, entry in zip(Attribution.load(tmp_path / "out.json").sequences, entries, strict=True):
        found = interpret.attribute(*opened, entry["prompt"], max_new_tokens=3, **languages)
        expected = found.aggregate().sequences[0]
        assert one.token_ids == expected.token_ids
        np.testing.assert_array_equal(one.source_scores, expected.source_scores)
        np.testing.assert_array_equal(one.scores, expected.scores)
    assert ">source<" in (tmp_path / "page.html").read_text()


def test_a_foil_is_a_translation_too(saved, tmp_path):
    folder, languages = saved
    argv = ["--prompt", TEXT, "--target", "hello", "--foil", "cheese", "--json", tmp_path / "out.json"]
    assert attribute(folder, *argv, *flags(languages), "--steps", "0:1", "--align", "0:0") == 0
    expected = interpret.attribute(
        *load(folder, device="cpu"),
        TEXT,
        "hello",
        contrast_targets="cheese",
        attributed_fn="contrast_prob_diff",
        contrast="same_context",
        alignment=[[(0, 0)]],
        end=1,
        **languages,
    ).aggregate()
    found = Attribution.load(tmp_path / "out.json")
    np.testing.assert_array_equal(found.sequences[0].source_scores, expected.sequences[0].source_scores)


def test_layers_of_attention_are_the_decoders(saved, tmp_path):
    folder, languages = saved
    argv = ["--prompt", TEXT, "--target", TRANSLATION, "--method", "attention", *flags(languages)]
    assert attribute(folder, *argv, "--layers", "0:2", "--json", tmp_path / "out.json") == 0
    found = interpret.attribute(
        *load(folder, device="cpu"), TEXT, TRANSLATION, method="attention", layers=[0, 1], **languages
    )
    (one,) = Attribution.load(tmp_path / "out.json").sequences
    np.testing.assert_array_equal(one.source_scores, found.sequences[0].source_scores)


def test_a_missing_or_superfluous_language_is_an_error(saved, tmp_path, capsys):
    folder, languages = saved
    said = []
    for name in ("source_language", "target_language"):
        others = {other: code for other, code in languages.items() if other != name}
        changed = others if name in languages else {**languages, name: "en"}
        assert attribute(folder, "--prompt", TEXT, "--output", tmp_path / "run", *flags(changed)) == 2
        said.append(capsys.readouterr().err.partition("error: ")[2])
    assert not (tmp_path / "run").exists()
    if "source_language" in languages:
        assert said[0].startswith("--source-language is missing; give the language's code, such as ")
        assert said[1].startswith("--target-language is missing; give the language's code, such as ")
    else:
        assert said[0].startswith("--source-language: Marian models take no source language; leave it out")
        assert said[1].startswith("--target-language is missing; give one of: fra, spa")
