"""The columns of data sets that people have: each row is the prompt, subject, answer and foil that its makers meant."""

import json
from collections.abc import Iterator, Mapping

import pytest

from interpret.errors import InputError
from interpret.facts import Fact, load_facts, load_pairs
from interpret.facts.runs import fact_file
from interpret.prompts import Prompt, load_examples
from interpret.work.inputs import prompt_list

# Rows as the data sets have them; long lists of paraphrases are shortened.
KNOWN_1000 = {
    "known_id": 0, "subject": "Vinson Massif", "attribute": "Antarctica",
    "template": "{} is located in the continent", "prediction": " of Antarctica. It is the largest of the three",
    "prompt": "Vinson Massif is located in the continent of", "relation_id": "P30",
}  # fmt: skip
COUNTERFACT = {
    "case_id": 0, "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"}, "subject": "Danielle Darrieux",
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native"], "neighborhood_prompts": ["Montesquieu's mother tongue is"],
    "attribute_prompts": ["J.R.R. Tolkien is a native speaker of"], "generation_prompts": ["She lives in"],
}  # fmt: skip
COUNTERFACT_TRACING = {
    "relation": "The mother tongue of {} is", "relation_prefix": "The mother tongue of", "relation_suffix": " is",
    "prompt": "The mother tongue of Danielle Darrieux is", "relation_id": "P103", "target_false_id": "Q1860",
    "target_true_id": "Q150", "target_true": " French", "target_false": " English", "subject": " Danielle Darrieux",
}  # fmt: skip
ZSRE = {
    "subject": "Watts Humphrey", "src": "What university did Watts Humphrey attend?", "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?", "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology"], "loc": "nq question: who played desmond doss father?",
    "loc_ans": "Hugo Weaving", "cond": "Trinity College >> University of Michigan || What university did ...",
}  # fmt: skip
EASYEDIT = {
    "prompt": "Which family does Ramalinaceae belong to", "subject": "Ramalinaceae", "target_new": "Lamiinae",
    "ground_truth": ["Lecanorales"], "rephrase_prompt": "What family are Ramalinaceae?", "cond": "a >> b",
    "locality": {"Relation_Specificity": [{"prompt": "Ramalinaceae rank", "ground_truth": [["family"]]}]},
    "portability": {"Reasoning": []},
}  # fmt: skip
DATA_SETS = {
    "known_1000": (
        KNOWN_1000,
        Fact("known_0", KNOWN_1000["prompt"], "Vinson Massif", "Antarctica", "P30"),
    ),
    "CounterFact": (
        COUNTERFACT,
        Fact("case_0", "The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "French", "P103", "English"),
    ),
    "counterfact-tracing": (
        COUNTERFACT_TRACING,
        Fact("fact_0", "The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "French", "P103", "English"),
    ),
    "zsRE": (
        ZSRE,
        Fact("fact_0", ZSRE["src"], "Watts Humphrey", ZSRE["answers"][0], foil="University of Michigan"),
    ),
    "EasyEdit": (EASYEDIT, Fact("fact_0", EASYEDIT["prompt"], "Ramalinaceae", "Lecanorales", foil="Lamiinae")),
    "EasyEdit, a text": (
        EASYEDIT | {"ground_truth": "Lecanorales", "locality_prompt": "x", "locality_ground_truth": "y"},
        Fact("fact_0", EASYEDIT["prompt"], "Ramalinaceae", "Lecanorales", foil="Lamiinae"),
    ),
}


class DataSet:
    """What a Hugging Face data set offers: a length, rows by index, and iteration over dicts."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, object]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        return iter(self.rows)


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_row_of_a_data_set_is_a_fact(name, tmp_path):
    row, fact = DATA_SETS[name]
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for source in (tmp_path / "a.json", tmp_path / "a.jsonl", [row], DataSet([row])):
        file = load_facts(source)
        assert (file.facts, file.bad) == ([fact], [])
    # Columns without a value, as a Hugging Face data set has them for rows of another kind.
    assert load_facts([{"foil": None, "src": None, "raw": None} | row]).facts == [fact]


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_row_of_a_data_set_is_a_prompt_that_is_continued(name):
    row, fact = DATA_SETS[name]
    (prompt,) = load_examples([row])
    assert (prompt.text, prompt.subject, prompt.raw) == (fact.prompt, fact.subject, True)
    assert (prompt.target.strip(), prompt.foil and prompt.foil.strip()) == (fact.attribute, fact.foil)


def test_the_prompt_of_a_relation_may_be_left_out():
    row = {key: value for key, value in COUNTERFACT_TRACING.items() if key != "prompt"}
    assert load_facts([row]).facts == [DATA_SETS["counterfact-tracing"][1]]
    own = {"template": "{} is in", "subject": "Rome", "target": "Italy"}
    assert load_facts([own]).facts == [Fact("fact_0", "Rome is in", "Rome", "Italy")]


def test_a_blank_in_a_prompt_is_the_subjects_unless_the_subject_is_there():
    assert load_examples([{"prompt": "{} is in", "subject": "Rome"}])[0].text == "Rome is in"
    assert load_examples([{"prompt": "Rome is {}", "subject": "Rome"}])[0].text == "Rome is {}"
    assert load_examples([{"prompt": "f-strings have {}"}])[0].text == "f-strings have {}"


def test_the_relation_says_which_occurrence_of_a_subject_is_meant():
    row = COUNTERFACT_TRACING | {"relation": "Rome? {} is in", "prompt": "Rome? Rome is in", "subject": "Rome"}
    assert load_facts([row]).facts[0].occurrence == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": []}, '"answers" is []; expected a text, or a list of texts'),
        ({"answers": [3]}, '"answers" is [3]; expected a text, or a list of texts'),
        ({"answers": [" "]}, '"answers" is empty'),
        ({"answers": None}, '"answers" is missing'),
        ({"subject": None}, '"subject" is missing'),
        ({"subject": "Oslo"}, "\"subject\" 'Oslo' is not a part of the prompt"),
        ({"alt": 3}, '"alt" is 3; expected a string'),
        ({"alt": " "}, '"alt" is empty; leave it out, or give a wrong answer'),
    ],
)
def test_a_message_names_the_column_of_the_data_set(change, reason):
    (bad,) = load_facts([ZSRE, ZSRE | change]).bad
    assert bad.reason.startswith(f"row 1: {reason}")


def test_two_answers_are_refused():
    with pytest.raises(InputError, match='"target" and "attribute" both give the answer; leave one of them out'):
        load_examples([{"prompt": "Rome is in", "target": "Italy", "attribute": "Lazio"}])


@pytest.mark.parametrize("load", [load_examples, load_facts])
def test_columns_that_are_not_understood_are_named_with_what_would_do(load, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nRome is,1\n")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "a.csv")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "a.csv"))
    assert "the columns are 'text', 'label'; expected 'prompt', and for facts 'subject' and an answer: " in message
    for name in ("'target'", "known_1000", "'requested_rewrite' (CounterFact)", "'answers' (zsRE)", "EasyEdit"):
        assert name in message
    assert "\n" not in message


def test_pairs_of_a_table_and_their_columns(tmp_path):
    (tmp_path / "a.csv").write_text("true,false\nRome is in Italy,Rome is in Peru\n")
    assert load_pairs(tmp_path / "a.csv") == [("Rome is in Italy", "Rome is in Peru")]
    (tmp_path / "a.csv").write_text("yes,no\na,b\n")
    with pytest.raises(
        InputError, match=r'pairs\[0\]: "true" is None; expected a text; the columns are \'yes\', \'no\''
    ):
        load_pairs(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"train": [KNOWN_1000]}, r"examples is a dict; expected .*; give one of its parts, such as \['train'\]"),
        (3, "examples is a int; expected a file, or rows as dicts"),
        (["Rome is"], r"examples\[0\] is 'Rome is'; expected a dict"),
        ([], "examples is empty; give a file, or at least one Prompt"),
    ],
)
def test_what_is_no_list_of_dicts_is_refused(source, message):
    with pytest.raises(InputError, match=message):
        load_examples(source)
    if source != []:
        with pytest.raises(InputError, match=message):
            prompt_list(source)


def test_runs_take_dicts_and_data_sets_as_they_take_files():
    rows = [KNOWN_1000, ZSRE]
    assert prompt_list(DataSet(rows)) == prompt_list(load_examples(rows))
    assert fact_file(DataSet(rows)) == load_facts(rows)


# --------------------------------------------------------------------------------------- what the model reads


@pytest.mark.parametrize(
    ("row", "raw"),
    [
        ({}, False),
        ({"target": "Italy"}, True),
        ({"foil_ids": [3]}, True),
        ({"subject": "Rome"}, False),
        ({"target": "Italy", "raw": False}, False),
        ({"raw": True}, True),
    ],
)
def test_a_prompt_with_a_continuation_is_raw_unless_it_says_otherwise(row, raw):
    (prompt,) = load_examples([{"prompt": "Rome is in"} | row])
    assert prompt.raw is raw
    same = Prompt("prompt_1", "Rome is in", "prompt", row.get("raw"), prompt.subject, prompt.target, prompt.foil)
    assert same == prompt, "the rule holds in Python, too"
    for said in (True, False):
        assert load_examples([{"prompt": "Rome is in"} | row], raw=said)[0].raw is row.get("raw", said)


def test_a_category_may_be_left_out(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "category": "c"}, {"prompt": "d"}]
    (tmp_path / "a.json").write_text(json.dumps({"examples": rows}))
    assert [(one.name, one.category) for one in load_examples(tmp_path / "a.json")] == [
        ("prompt_1", "prompt"),
        ("c_1", "c"),
        ("prompt_2", "prompt"),
    ]
    (tmp_path / "a.txt").write_text("a\nb\n")
    (tmp_path / "b.json").write_text('["a", "b"]')
    assert (
        load_examples(tmp_path / "a.txt")
        == load_examples(tmp_path / "b.json")
        == load_examples(rows[:1] + [{"prompt": "b"}])
    )
