import json
import re
from pathlib import Path

import pytest

from interpret.errors import InputError
from interpret.prompts.prompts import Prompt, load_examples

EXAMPLES = Path(__file__).parents[2] / "examples" / "examples.json"


def written(folder: Path, document: object) -> Path:
    path = folder / "prompts.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def test_prompts_keep_the_order_of_the_file_and_count_within_their_category(tmp_path):
    entries = [("b", "z"), ("a", "y"), ("b", "x")]
    path = written(tmp_path, {"examples": [{"prompt": text, "category": of} for of, text in entries]})
    assert [(p.name, p.text) for p in load_examples(path)] == [("b_1", "z"), ("a_1", "y"), ("b_2", "x")]


@pytest.mark.parametrize(("entry", "raw"), [({}, False), ({"raw": False}, False), ({"raw": True}, True)])
def test_raw_counts_by_its_value_not_by_its_presence(tmp_path, entry, raw):
    path = written(tmp_path, {"examples": [{"prompt": "hi", "category": "c", **entry}]})
    assert load_examples(path) == [Prompt("c_1", "hi", "c", raw)]


def test_notes_of_the_user_are_left_alone(tmp_path):
    path = written(tmp_path, {"examples": [{"prompt": "hi", "category": "c", "source": "me", "seen": 3}]})
    assert load_examples(path) == [Prompt("c_1", "hi", "c")]


def test_the_shipped_examples_are_of_several_categories():
    prompts = load_examples(EXAMPLES)
    assert 6 <= len(prompts) <= 10
    assert len({prompt.category for prompt in prompts}) >= 4
    assert any(prompt.raw for prompt in prompts)
    assert any(prompt.subject for prompt in prompts)


GOOD = {"prompt": "Paris is in France", "category": "c"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ([], 'has no examples; expected {"examples": [{"prompt": ..., "category": ...}, ...]}'),
        ({"example": []}, "has no examples; expected"),
        ({"examples": []}, "has no examples; expected"),
        ({"examples": {"prompt": "x"}}, "has no examples; expected"),
        ({"examples": [GOOD, 3]}, 'examples[1]: expected an object with "prompt", got 3'),
        ({"examples": [{"category": "c"}]}, 'examples[0]: "prompt" is missing'),
        ({"examples": [{**GOOD, "prompt": 3}]}, 'examples[0]: "prompt" is 3; expected a string'),
        ({"examples": [{**GOOD, "prompt": " \n"}]}, 'examples[0]: "prompt" is empty'),
        ({"examples": [{**GOOD, "raw": "yes"}]}, "examples[0]: \"raw\" is 'yes'; expected true or false"),
        ({"examples": [{**GOOD, "raw": 1}]}, 'examples[0]: "raw" is 1; expected true or false'),
        (
            {"examples": [{**GOOD, "subject": "Rome"}]},
            "examples[0]: \"subject\" 'Rome' is not a part of the prompt 'Paris is in France'",
        ),
        (
            {"examples": [{**GOOD, "subjects": "Paris"}]},
            'examples[0]: key "subjects" looks like "subject"; correct it, or use another name for your own key',
        ),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_entry(tmp_path, document, message):
    path = written(tmp_path, document)
    with pytest.raises(InputError, match=re.escape(str(path)) + ".*" + re.escape(message)):
        load_examples(path)


def test_a_missing_file_is_an_error_that_shows_a_good_one(tmp_path):
    message = f"{tmp_path / 'none.json'} does not exist; give a JSON file like examples/examples.json"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_examples(tmp_path / "none.json")


def test_a_file_that_is_no_text_is_an_error(tmp_path):
    (tmp_path / "prompts.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="prompts.json cannot be read: 'utf-8' codec"):
        load_examples(tmp_path / "prompts.json")


def test_targets_and_foils_may_be_token_ids(tmp_path):
    entries = [{"prompt": "a", "category": "b", "target_ids": [3, 4], "foil": "\n"}]
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"examples": entries}))
    (prompt,) = load_examples(path)
    assert (prompt.target, prompt.foil) == ((3, 4), "\n")
    entries[0]["target"] = "x"
    path.write_text(json.dumps({"examples": entries}))
    with pytest.raises(
        InputError, match='"target" and "target_ids" both give what follows the prompt; leave one of th'
    ):
        load_examples(path)


def test_a_prompt_may_name_the_states_to_interpret():
    (prompt,) = load_examples([{"prompt": "a", "states": [[3, 5], [7, -1]]}])
    assert prompt.states == ((3, 5), (7, -1))


@pytest.mark.parametrize("states", [[], 3, [3, 5], [[3]], [[3, "5"]], [[True, 5]], {"3": 5}])
def test_states_that_are_not_pairs_are_refused(states):
    with pytest.raises(
        InputError, match=r'^examples\[0\]: "states" is .*; expected pairs of a layer and a token, such as'
    ):
        load_examples([{"prompt": "a", "states": states}])


def test_a_byte_order_mark_is_ignored(tmp_path):
    path = written(tmp_path, "\ufeff" + json.dumps({"examples": [GOOD]}))
    assert load_examples(path) == [Prompt("c_1", GOOD["prompt"], "c")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"prompt": list(range(10**5)), "category": "c"}, 'examples[0]: "prompt" is [0, 1, 2, 3, 4, 5,'),
        ({"prompt": "a", "category": "x\ud800"}, "\"category\" is 'x\\ud800'; it has half of a surrogate pair"),
        ({"prompt": "a", "category": "c", "subject": "b" * 10**6}, "is not a part of the prompt 'a'"),
        ({"prompt": "a", "category": "c", "raw": 10**400}, '"raw" is a number of about '),
    ],
)
def test_a_large_or_odd_value_is_shown_in_part(tmp_path, entry, message):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_examples(written(tmp_path, {"examples": [entry]}))
    assert len(str(caught.value)) < 500


def test_a_key_that_occurs_twice_is_named(tmp_path):
    text = '{"examples": [{"prompt": "a", "category": "c", "prompt": "b"}]}'
    with pytest.raises(InputError, match="prompts.json has the key 'prompt' twice in the object"):
        load_examples(written(tmp_path, text))
