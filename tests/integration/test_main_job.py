"""Self-interpretation with the real demo model: interpretations must mention the word whose state is inserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from interpret.records import Interpretation
from interpret.storage.run_folder import read_table

TOP = Path(__file__).parents[2]
WORDS = ["love", "eating", "pizza", "with", "extra", "cheese"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("main_job")
    prompt = {"prompt": "I love eating pizza with extra cheese.", "category": "taste"}
    (folder / "examples.json").write_text(json.dumps({"examples": [prompt]}))
    script = TOP / "scripts" / "get_interpretations_from_examples.py"
    quick = ["--layers", "4,8", "--new-tokens", "12", "--prompt-output-tokens", "8", "--device", "cpu"]
    command = [sys.executable, script, "--examples", folder / "examples.json", "--output", folder / "run", *quick]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr
    assert "control" in done.stdout
    return read_table(folder / "run", Interpretation)


def mentions(word, rows):
    """Return the share of rows whose text contains the word."""
    return sum(word in row.interpretation_text.lower() for row in rows) / len(rows)


def test_the_words_of_an_inserted_token_come_back_more_often_than_in_its_control(rows):
    control = [row for row in rows if row.kind == "control"]
    assert len(control) == 1
    inserted = [row for row in rows if row.current_token.strip() in WORDS]
    assert len(inserted) == 2 * len(WORDS)
    back = [mentions(row.current_token.strip(), [row]) for row in inserted]
    by_chance = [mentions(row.current_token.strip(), control) for row in inserted]
    assert sum(back) >= sum(by_chance) + 8, "of 12"


@pytest.mark.parametrize("word", ["pizza", "extra", "cheese"])
def test_a_word_comes_back_from_its_own_states_more_often_than_from_others(rows, word):
    own = [row for row in rows if row.current_token.strip() == word]
    others = [row for row in rows if row.kind == "interpretation" and row.current_token.strip() != word]
    assert mentions(word, own) > mentions(word, others)


def test_a_word_that_comes_back_owes_it_to_the_state(rows):
    inserted = [row for row in rows if row.current_token.strip() in WORDS]
    back = [row for row in inserted if row.current_token.strip() in row.interpretation_text.lower()]
    assert len(back) >= 8, "of 12"
    assert min(max(row.signed_relevancy) for row in back) > 0.2


def test_the_prompt_is_read_through_the_models_own_chat_template(rows):
    assert rows[0].prompt.endswith(
        "<|im_start|>user\nI love eating pizza with extra cheese.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rows[0].repeat_prompt.endswith("<|im_start|>assistant\nSure, I will summarize the message:")
    assert rows[0].repeat_prompt.count(" _") == 5
    assert rows[0].prompt_output.strip()
