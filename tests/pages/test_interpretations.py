"""The page of a run, without a browser: content, escaping, size, and contrast."""

import base64
import hashlib
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.pages.interpretations import interpretation_page
from interpret.records import Interpretation
from reference.interpretation_records import Outline, made, read_back, with_columns

TOP = Path(__file__).parents[2]
MANIFEST = {
    "format": "llm-interpret run, format 1",
    "identity": {
        "model": "demo",
        "layers": "::5",
        "interpretation_prompts": ["summarize", "about"],
        "load_in_4bit": False,
    },
    "circumstances": {"versions": {"torch": "2.4.0", "transformers": "4.34.0"}},
    "status": "complete",
    "finished": "2024-05-06T07:08:09+00:00",
}
HOSTILE = {
    "closes the script": '</script><script>document.title = "taken"</script>',
    "opens a comment": "<!-- <script> -->",
    "is markup": '<img src="x" onerror="alert(1)"> &amp; &lt; &#60;',
    "is a template": "{{ 7 * 7 }} {% raw %} ${7 * 7}",
    "quotes": "\"double\" 'single' `back` \\ \\u003c \\n",
    "line ends": "one\ntwo\r\nthree\rfour\u2028five\u2029six\x85",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301",
    "right to left": "שלום \u202eمرحبا\u202c",
    "control characters": "\x00\x01\x1b[31m\x7f\ufeff\ufffe",
    "blank": " \t\n ",
    "empty": "",
}


def grid_of(**values):
    """A control and two layers of four tokens."""
    cells = [(layer, token) for layer in (0, 5) for token in range(4)]
    return [
        made(**values),
        *(made(layer_idx=layer, token_idx=token, **values) for layer, token in cells),
    ]


def test_every_field_of_every_record_is_in_the_page():
    records = [
        *grid_of(),
        *grid_of(name="fact_2", prompt="Other", prompt_token_list=["Oth", "er", "!", "?"], category="more"),
        *grid_of(repeat_prompt_name="about", repeat_prompt="_ is about"),
        made([" noise"], layer_idx=5, token_idx=1, kind="another", site="mlp_out", insertion_layer=1),
        made(
            [" one"],
            layer_idx=5,
            token_idx=2,
            wrong_token_idx=3,
            probability_with_wrong_vector=[0.25],
            gain_over_nothing=1.5,
            gain_over_wrong_vector=-0.25,
            probability_with_text=[0.125],
            gain_over_text=-1.25,
            says_nothing=True,
            says_more_than_controls=False,
        ),
        made([], layer_idx=8, token_idx=0),
    ]
    assert read_back(interpretation_page(records, MANIFEST)) == [asdict(one) for one in records]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_changes_nothing_but_itself(text):
    names = ("name", "prompt", "prompt_output", "category", "repeat_prompt", "repeat_prompt_name")
    record = made(
        [text, "ok", text],
        **dict.fromkeys(names, text),
        prompt_token_list=[text, text + "!"],
        token_idx=1,
        layer_idx=0,
        kind=text,
    )
    page = interpretation_page([record], {"identity": {"model": text, text: text}, text: [text]})
    assert read_back(page) == [asdict(record)]
    plain = interpretation_page([made(layer_idx=0, token_idx=1)], {"identity": {"model": "m", "n": "n"}, "o": ["o"]})
    assert Outline(page).tags == Outline(plain).tags


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=25)
def test_any_text_survives(text):
    record = made([text], layer_idx=0, token_idx=0, prompt_token_list=[text], prompt=text)
    assert read_back(interpretation_page([record], {})) == [asdict(record)]


def test_a_lone_surrogate_survives_being_written():
    record = made(["\udc80"], layer_idx=0, token_idx=0)
    page = interpretation_page([record], {"identity": {"model": "\udc80"}})
    assert read_back(page.encode().decode()) == [asdict(record)]


def test_scores_are_kept_to_four_decimals_and_missing_ones_as_missing():
    scores = [0.123456, -1e-9, math.nan, math.inf]
    record = made([" a"] * 4, layer_idx=0, token_idx=0, signed_relevancy=scores)
    data = json.loads(dict(Outline(interpretation_page([record], {})).raw)["data"])
    (row,) = data["rows"]
    assert row[data["columns"].index("signed")] == [1235, 0, None, None]


def test_single_values_of_further_columns_go_along():
    record = made(
        record=with_columns(("evidence", float), ("source", str), ("lists", list[int])),
        evidence=math.nan,
        source="mlp",
        lists=[1],
    )
    (row,) = read_back(interpretation_page([record], {}))
    assert (row["evidence"], row["source"], "lists" in row) == ("nan", "mlp", False)


def test_a_thousand_interpretations_fit_into_3_mb():
    chance = random.Random(0)
    vocabulary = [
        "".join(chance.choices("abcdefghijklmnopqrstuvwxyzéß語", k=chance.randint(2, 9))) for _ in range(20_000)
    ]
    records = []
    for prompt in range(10):
        tokens = chance.choices(vocabulary, k=80)
        for n in range(100):
            pieces = [" " + chance.choice(vocabulary) for _ in range(60)]
            signed = [chance.uniform(-1, 1) for _ in pieces]
            shared = {
                "name": f"long_{prompt}",
                "prompt": " ".join(tokens),
                "prompt_token_list": tokens,
                "prompt_output": " ".join(tokens),
            }
            ids = [chance.randrange(100_000, 200_000) for _ in pieces]
            place = {"layer_idx": n // 10, "token_idx": n % 10}
            gains = {
                "gain_over_nothing": 1.23456,
                "gain_over_wrong_vector": -0.123456,
                "says_more_than_controls": False,
            }
            wrong = {"probability_with_wrong_vector": [chance.random() for _ in pieces], "wrong_token_idx": 7, **gains}
            row = shared | place | wrong | {"interpretation": ids, "signed_relevancy": signed}
            records.append(made(pieces, **row))
    size = len(interpretation_page(records, MANIFEST).encode())
    assert 1_000_000 < size < 3_000_000


def test_prompts_and_token_lists_are_stored_once():
    page = interpretation_page(
        grid_of(prompt="stands here once", prompt_token_list=["tok1", "tok2", "tok3", "tok4"]), MANIFEST
    )
    assert page.count("stands here once") == page.count("tok3") == 1


def test_the_page_asks_for_nothing_from_elsewhere():
    page = interpretation_page(grid_of(), MANIFEST)
    assert not re.findall(r"(?i)https?:|\burl\(|@import|\bfetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", page)
    addresses = [
        value for _, attributes in Outline(page).tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses == ["data:,"]  # an empty icon, so that the browser requests none


def test_the_policy_of_the_page_lets_its_own_script_and_style_run_and_nothing_else():
    outline = Outline(interpretation_page(grid_of(), MANIFEST))
    (policy,) = [attributes["content"] for tag, attributes in outline.tags if "http-equiv" in attributes]
    hashes = {
        kind: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in outline.raw
    }
    assert policy == (
        f"default-src 'none'; img-src data:; style-src '{hashes['style']}'; script-src '{hashes['script']}'"
    )


def test_the_whole_manifest_is_shown_as_provenance():
    page = interpretation_page(grid_of(), MANIFEST)
    texts = [text.strip() for text in Outline(page).texts if text.strip()]
    pairs = list(zip(texts, texts[1:], strict=False))
    for pair in [
        ("model", "demo"),
        ("interpretation_prompts", '["summarize", "about"]'),
        ("load_in_4bit", "false"),
        ("versions.torch", "2.4.0"),
        ("status", "complete"),
    ]:
        assert pair in pairs
    assert "8 interpretations · 1 prompt · 2 layers · finished 2024-05-06" in texts


def test_a_run_still_going_on_is_said_to_be():
    texts = Outline(interpretation_page(grid_of(), MANIFEST | {"status": "incomplete"})).texts
    assert "8 interpretations · 1 prompt · 2 layers · the run was unfinished when this page was created" in texts


def test_a_page_without_a_manifest_says_so():
    assert "These records have no manifest." in " ".join(Outline(interpretation_page(grid_of(), {})).texts)


def test_no_records_are_refused():
    with pytest.raises(
        InputError, match=r"^the run has no rows to show: wait until it has finished a prompt, then try again$"
    ):
        interpretation_page([], MANIFEST)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_idx": 4}, r"^records\[1\]: token_idx 4, but prompt 'fact_1' has 4 tokens$"),
        ({"token_idx": -1}, r"^records\[1\]: token_idx -1, but prompt 'fact_1' has 4 tokens$"),
        ({"interpretation_prob": [0.5]}, r"^records\[1\]: 3 tokens in interpretation, but 1 in interpretation_prob$"),
        (
            {"probability_with_wrong_vector": [0.5]},
            r"^records\[1\]: 3 tokens in interpretation, but 1 in probability_with_wrong_vector$",
        ),
        (
            {"probability_with_text": [0.5]},
            r"^records\[1\]: 3 tokens in interpretation, but 1 in probability_with_text$",
        ),
        (
            {"interpretation_tokens": [" a"]},
            r"^records\[1\]: 3 tokens in interpretation, but 1 in interpretation_tokens$",
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_named(values, message):
    good = made(layer_idx=0, token_idx=0)
    wrong = Interpretation(**{**asdict(good), **values})
    with pytest.raises(InputError, match=message):
        interpretation_page([good, wrong], MANIFEST)


def test_an_installed_package_has_the_files_of_the_page(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "base")]
    subprocess.run(
        [*command, "build_py", "--build-lib", str(tmp_path / "lib")], cwd=TOP, check=True, capture_output=True
    )
    folder = Path("interpret", "pages")
    assert {path.name for path in (tmp_path / "lib" / folder).iterdir()} == {
        path.name for path in (TOP / folder).iterdir() if path.is_file()
    }


def colours():
    """The colours of each scheme by name, as red, green and blue."""
    css = (TOP / "interpret" / "pages" / "base.css").read_text()
    found = re.findall(r"--([\w-]+): (?:#(\w{6})|(\d+) (\d+) (\d+));", css.split("* {")[0])
    light, dark = {}, {}
    for name, code, *parts in found:
        scheme = dark if name in light else light
        scheme[name] = tuple(bytes.fromhex(code)) if code else tuple(map(int, parts))
    assert len(light) == len(dark)
    return {"light": light, "dark": dark}


def contrast(one, other):
    """WCAG 2.1, "contrast ratio"."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_of_known_colours():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme):
    of = colours()[scheme]
    pairs = [(of[ink], of[ground]) for ink in ("ink", "quiet") for ground in ("page", "surface", "raised")]
    pairs += [(of["on-accent"], of["accent"])]
    for end in ("positive", "negative"):
        for strength in (step / 20 for step in range(21)):
            mixed = tuple(strength * a + (1 - strength) * b for a, b in zip(of[end], of["surface"], strict=True))
            pairs.append((of["ink"], mixed))
    assert min(contrast(*pair) for pair in pairs) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_marks_a_cell_stands_out(scheme):
    of = colours()[scheme]
    for ground in ("page", "surface", "positive", "negative"):
        assert contrast(of["accent"], of[ground]) >= (3 if ground in ("page", "surface") else 1.5)
