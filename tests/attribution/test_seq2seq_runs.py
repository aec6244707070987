"""``interpret attribute`` with encoder-decoder models: loaded from a folder, with scores of source and target."""

import numpy as np
import pytest
from selenium.webdriver.common.by import By

import interpret
from interpret.attribution.result.attribution import Attribution
from interpret.models.opening import load
from interpret.records import TokenScore
from interpret.storage import run_folder
from reference.browser import assert_quiet, chromium, look
from reference.commands import json_file, run
from reference.toy_seq2seq import toy_seq2seq

TEXT, TARGET = "I love eating pizza.", "hello cheese"
# The toy pieces fall back on bytes, NLLB's do not.
_FALLBACK = pytest.mark.filterwarnings("ignore:The sentencepiece tokenizer that you are converting to a fast")
# It matters to punctuation, which is the same in both runs that are compared.
_MOSES = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
pytestmark = [_FALLBACK, _MOSES]


@pytest.fixture(
    scope="module", params=["m2m100", "nllb", "marian", "mbart", "mbart50", "bart_forced", "pegasus", "t5", "t5_gated"]
)
def saved(request, tmp_path_factory):
    """A folder with an encoder-decoder model, and the languages it takes."""
    toy, folder = toy_seq2seq(request.param), tmp_path_factory.mktemp(request.param)
    toy.model.save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    return folder, toy.languages


def attribute(folder, *argv):
    return run("attribute", "--model", folder, "--device", "cpu", *argv)


def flags(languages):
    return [word for name, code in languages.items() for word in (f"--{name.replace('_', '-')}", code)]


def test_the_table_distinguishes_source_and_target(saved, tmp_path, capsys):
    folder, languages = saved
    argv = ["--prompt", TEXT, "--target", TARGET, "--output", tmp_path / "run", *flags(languages)]
    assert attribute(folder, *argv) == 0
    (one,) = interpret.attribute(*load(folder, device="cpu"), TEXT, TARGET, **languages).aggregate().sequences
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


def test_a_foil_is_written_by_the_decoder_too(saved, tmp_path):
    folder, languages = saved
    step = int(folder.name.startswith("bart_forced"))  # its targets begin with <s>, in which the foil does not differ
    argv = ["--prompt", TEXT, "--target", "hello", "--foil", "cheese", "--json", tmp_path / "out.json"]
    argv += ["--steps", f"{step}:{step + 1}", "--align", f"{step}:{step}"]
    assert attribute(folder, *argv, *flags(languages)) == 0
    expected = interpret.attribute(
        *load(folder, device="cpu"),
        TEXT,
        "hello",
        contrast_targets="cheese",
        attributed_fn="contrast_prob_diff",
        contrast="same_context",
        alignment=[[(step, step)]],
        start=step,
        end=step + 1,
        **languages,
    ).aggregate()
    found = Attribution.load(tmp_path / "out.json")
    np.testing.assert_array_equal(found.sequences[0].source_scores, expected.sequences[0].source_scores)


def test_layers_of_attention_are_the_decoders(saved, tmp_path):
    folder, languages = saved
    argv = ["--prompt", TEXT, "--target", TARGET, "--method", "attention", *flags(languages)]
    assert attribute(folder, *argv, "--layers", "0:2", "--json", tmp_path / "out.json") == 0
    found = interpret.attribute(
        *load(folder, device="cpu"), TEXT, TARGET, method="attention", layers=[0, 1], **languages
    )
    (one,) = Attribution.load(tmp_path / "out.json").sequences
    np.testing.assert_array_equal(one.source_scores, found.sequences[0].source_scores)


def test_the_page_shows_the_scores_of_both_sides(tmp_path):
    toy = toy_seq2seq("t5")
    for part in (toy.model, toy.tokenizer):
        part.save_pretrained(tmp_path / "model")
    argv = ["--prompt", "translate English to German: I love pizza", "--target", TARGET, "--output", tmp_path / "run"]
    argv += ["--html", tmp_path / "page.html", "--json", tmp_path / "out.json"]
    assert attribute(tmp_path / "model", *argv) == 0
    (one,) = Attribution.load(tmp_path / "out.json").sequences
    with chromium() as browser:
        look(browser)
        browser.get((tmp_path / "page.html").as_uri())
        heads = browser.find_elements(By.CSS_SELECTOR, "tbody th[scope=row] .piece")
        cells = browser.find_elements(By.CSS_SELECTOR, "tbody td[data-value]")
        tokens = [head.text for head in heads]
        values = [float(cell.get_attribute("data-value").replace("\u2212", "-")) for cell in cells]
        assert_quiet(browser, tmp_path / "page.html")
    assert tokens == [piece.replace(" ", "\u00b7") for piece in (*one.source_tokens, *one.tokens[:-1])]
    scores = np.concatenate([one.source_scores, one.scores[:-1]])
    assert values == pytest.approx(scores[~np.isnan(scores)].tolist(), rel=1e-5)


LANGUAGES = [
    ("m2m100", {"target_language": "fr"}, "--source-language is missing; give the language's code, such as "),
    ("nllb", {"source_language": "eng_Latn"}, "--target-language is missing; give the language's code, such as "),
    ("marian", {}, "--target-language is missing; give one of: fra, spa"),
    ("marian", {"source_language": "en"}, "--source-language: Marian models take no source language; leave it out"),
    ("t5", {"target_language": "de"}, "--source-language and --target-language are for translation models; leave them"),
]


@pytest.mark.parametrize(("kind", "languages", "message"), LANGUAGES)
def test_a_missing_or_superfluous_language_is_an_error(kind, languages, message, tmp_path, capsys):
    toy = toy_seq2seq(kind)
    for part in (toy.model, toy.tokenizer):
        part.save_pretrained(tmp_path / "model")
    argv = ["--prompt", TEXT, "--output", tmp_path / "run", *flags(languages)]
    assert attribute(tmp_path / "model", *argv) == 2
    assert capsys.readouterr().err.partition("error: ")[2].startswith(message)
    assert not (tmp_path / "run").exists()
