import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interpret.errors import InputError
from interpret.facts.files import BadFact, Fact, load_facts, occurrences
from interpret.facts.runs import fact_file
from interpret.tracing.inputs import TraceSettings, trace_inputs
from reference.tiny import tiny_model
from reference.toy_tokenizers import TOKENIZERS

EXAMPLES = Path(__file__).parents[2] / "examples" / "facts.json"
GOOD = {"subject": "Lake Como", "attribute": "Italy", "prompt": "Lake Como is located in"}
REWRITE = {
    "prompt": "{} is located in",
    "subject": "Lake Como",
    "relation_id": "P17",
    "target_true": {"str": "Italy", "id": "Q38"},
    "target_new": {"str": "Norway", "id": "Q20"},
}


def written(folder: Path, document: object, name: str = "facts.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------- good rows


def test_a_row_of_known_1000_is_a_fact(tmp_path):
    row = GOOD | {
        "known_id": 7,
        "template": "{} is located in",
        "prediction": " Italy, where it is",
        "relation_id": "P17",
    }
    file = load_facts(written(tmp_path, [row]))
    assert file.facts == [Fact("known_7", "Lake Como is located in", "Lake Como", "Italy", relation="P17")]
    assert file.bad == []


def test_a_row_of_counterfact_is_a_fact(tmp_path):
    row = {"case_id": 12, "pararel_idx": 3, "requested_rewrite": REWRITE, "paraphrase_prompts": ["Lake Como is in"]}
    fact = Fact("case_12", "Lake Como is located in", "Lake Como", "Italy", relation="P17", foil="Norway")
    assert load_facts(written(tmp_path, [row])).facts == [fact]


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("facts.json", [GOOD, {"requested_rewrite": REWRITE}]),
        ("facts.json", {"about": "lakes", "facts": [GOOD, {"requested_rewrite": REWRITE}]}),
        ("facts.jsonl", json.dumps(GOOD) + "\n\n" + json.dumps({"requested_rewrite": REWRITE}) + "\n"),
    ],
)
def test_a_file_is_a_list_or_an_object_with_facts_or_lines(tmp_path, name, document):
    facts = load_facts(written(tmp_path, document, name)).facts
    assert [fact.name for fact in facts] == ["fact_0", "fact_1"]
    assert [fact.prompt for fact in facts] == ["Lake Como is located in"] * 2


def test_space_around_subject_and_attribute_is_no_part_of_them(tmp_path):
    row = GOOD | {"subject": " Lake Como ", "attribute": " Italy", "foil": " Norway"}
    (fact,) = load_facts(written(tmp_path, [row])).facts
    assert (fact.subject, fact.attribute, fact.foil) == ("Lake Como", "Italy", "Norway")


def test_what_may_be_left_out_may_also_be_null(tmp_path):
    row = GOOD | dict.fromkeys(("known_id", "template", "relation_id", "foil", "occurrence"))
    assert load_facts(written(tmp_path, [row])).facts == [Fact("fact_0", GOOD["prompt"], "Lake Como", "Italy")]


# ----------------------------------------------------------------------------- which occurrence of the subject

TWICE = {"subject": "Rome", "attribute": "Italy", "prompt": "All roads lead to Rome, and Rome is in"}


@pytest.mark.parametrize(
    ("row", "occurrence"),
    [
        (TWICE | {"occurrence": 0}, 0),
        (TWICE | {"occurrence": 1}, 1),
        (TWICE | {"template": "All roads lead to {}, and Rome is in"}, 0),
        (TWICE | {"template": "All roads lead to Rome, and {} is in"}, 1),
        (TWICE | {"template": "All roads lead to Rome, and {}"}, 1),  # the prompt continues after the template
        (TWICE | {"template": "All roads lead to {}, and Rome is in", "occurrence": 1}, 1),
        (GOOD | {"occurrence": 0}, None),
        (GOOD | {"template": "The lake {} is in"}, None),  # one occurrence: the template does not have to match
    ],
)
def test_a_subject_that_occurs_twice_is_the_one_the_row_means(tmp_path, row, occurrence):
    assert load_facts(written(tmp_path, [row])).facts[0].occurrence == occurrence


def test_the_subject_of_counterfact_stands_at_the_blank(tmp_path):
    row = {"requested_rewrite": REWRITE | {"prompt": "Lake Como? {} is in"}}
    (fact,) = load_facts(written(tmp_path, [row])).facts
    assert (fact.prompt, fact.occurrence) == ("Lake Como? Lake Como is in", 1)


def test_overlapping_occurrences_are_distinguished():
    assert occurrences("banana", "ana") == [1, 3]
    assert occurrences("banana", "x") == []


# ------------------------------------------------------------------------------------------------ unreadable rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("hi", "expected an object with subject, attribute and prompt, got 'hi'"),
        ({}, '"subject" is missing'),
        (GOOD | {"prompt": None}, '"prompt" is missing'),
        (GOOD | {"attribute": 3}, '"attribute" is 3; expected a string'),
        (GOOD | {"attribute": " "}, '"attribute" is empty'),
        (GOOD | {"prompt": ""}, '"prompt" is empty'),
        (GOOD | {"subject": "Rome"}, "\"subject\" 'Rome' is not a part of the prompt 'Lake Como is located in'"),
        (GOOD | {"foil": ""}, '"foil" is empty; leave it out, or give a wrong answer'),
        (GOOD | {"foil": ["Norway"]}, "\"foil\" is ['Norway']; expected a string"),
        (GOOD | {"occurrence": True}, '"occurrence" is True; expected a whole number'),
        (GOOD | {"occurrence": 1}, "\"occurrence\" is 1; 'Lake Como' occurs 1 times in the prompt: give 0 to 0"),
        (GOOD | {"occurrence": -1}, "\"occurrence\" is -1; 'Lake Como' occurs 1 times in the prompt: give 0 to 0"),
        (
            TWICE,
            "\"subject\" 'Rome' occurs 2 times in the prompt 'All roads lead to Rome, and Rome is in'; "
            'choose one with "occurrence": 0 to 1, or give a "template" with {} in its place',
        ),
        (
            TWICE | {"template": "{} is in"},
            "\"subject\" 'Rome' occurs 2 times in the prompt 'All roads lead to Rome, and Rome is in'; "
            'choose one with "occurrence": 0 to 1, or give a "template" with {} in its place',
        ),
        (
            GOOD | {"occurence": 0},
            'key "occurence" looks like "occurrence"; correct it, or use another name for your own key',
        ),
        (
            {"requested_rewrites": REWRITE},
            'key "requested_rewrites" looks like "requested_rewrite"; correct it, or use another name for your own key',
        ),
        (GOOD | {"known_id": "a/b"}, '"known_id" is \'a/b\'; expected a number, or letters, digits, "-", "_" and "."'),
        (GOOD | {"known_id": True}, '"known_id" is True; expected a number, or letters, digits, "-", "_" and "."'),
        ({"requested_rewrite": "x"}, "\"requested_rewrite\" is 'x'; expected an object"),
        (
            {"requested_rewrite": REWRITE | {"prompt": "Lake Como is in"}},
            "requested_rewrite: \"prompt\" 'Lake Como is in' has to contain {} exactly once, in place of the subject",
        ),
        (
            {"requested_rewrite": {key: REWRITE[key] for key in ("prompt", "subject")}},
            'requested_rewrite: "target_true" is missing',
        ),
        (
            {"requested_rewrite": REWRITE | {"target_true": "Italy"}},
            'requested_rewrite: "target_true" is \'Italy\'; expected an object with "str"',
        ),
        (
            {"requested_rewrite": REWRITE | {"target_new": {"id": "Q20"}}},
            "requested_rewrite: \"target_new\" is {'id': 'Q20'}; expected an object with \"str\"",
        ),
    ],
)
def test_an_unreadable_row_is_reported_with_index_and_key(tmp_path, row, reason):
    file = load_facts(written(tmp_path, [GOOD, row]))
    assert [fact.name for fact in file.facts] == ["fact_0"]
    (bad,) = file.bad
    assert (bad.index, bad.reason) == (1, f"row 1: {reason}")


def test_a_line_that_is_not_json_is_an_unreadable_row(tmp_path):
    file = load_facts(written(tmp_path, json.dumps(GOOD) + '\n{"subject": \n', "facts.jsonl"))
    reason = "row 1: line 2 is not JSON: Expecting value: line 1 column 13 (char 12)"
    assert file.bad == [BadFact(1, "fact_1", reason)]


def test_names_are_unique(tmp_path):
    file = load_facts(written(tmp_path, [GOOD | {"known_id": 1}, GOOD | {"known_id": "1"}, GOOD | {"known_id": 2}]))
    assert [fact.name for fact in file.facts] == ["known_1", "known_2"]
    reason = "row 1: an earlier row has the same name 'known_1'; give each row a unique id"
    assert file.bad == [BadFact(1, "known_1", reason)]


@given(good=st.lists(st.booleans(), min_size=1, max_size=8).filter(any))
def test_unreadable_rows_never_hide_the_others(tmp_path_factory, good):
    rows = [GOOD if is_good else {"prompt": 1} for is_good in good]
    file = load_facts(written(tmp_path_factory.mktemp("facts"), rows))
    assert [fact.name for fact in file.facts] == [f"fact_{index}" for index, is_good in enumerate(good) if is_good]
    assert [bad.index for bad in file.bad] == [index for index, is_good in enumerate(good) if not is_good]


NO_FACTS = 'has no facts; expected a list of rows, [{"subject": ..., "attribute": ..., "prompt": ...}, ...]'


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], NO_FACTS),
        ({}, NO_FACTS),
        ({"facts": {"0": GOOD}}, NO_FACTS),
        ("3", NO_FACTS),
        ("[", "is not JSON: Expecting value: line 1 column 2 (char 1)"),
        ([{}, "x"], 'has no readable fact; unreadable rows: 2; row 0: "subject" is missing'),
    ],
)
def test_a_file_without_a_fact_is_an_error(tmp_path, document, message):
    path = written(tmp_path, document)
    with pytest.raises(InputError, match=f"^{re.escape(f'{path} {message}')}$"):
        load_facts(path)


def test_a_missing_file_is_an_error_that_shows_a_good_one(tmp_path):
    path = tmp_path / "none.json"
    message = f"{path} does not exist; give a JSON file like examples/facts.json"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        load_facts(path)


# ------------------------------------------------------------------------------------------ the shipped facts


def test_the_shipped_facts_are_of_many_kinds():
    file = load_facts(EXAMPLES)
    facts = file.facts
    assert len(facts) >= 25
    assert file.bad == []
    assert any(f"{fact.subject}'s" in fact.prompt for fact in facts)
    assert any("." in fact.subject for fact in facts)
    assert any(not fact.subject.isascii() for fact in facts)
    assert any(f"{fact.subject}," in fact.prompt for fact in facts)
    assert any(not fact.prompt.startswith(fact.subject) for fact in facts)
    assert any(" " in fact.attribute for fact in facts)
    assert any(fact.occurrence for fact in facts)
    assert all(fact.foil and fact.foil != fact.attribute for fact in facts)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_tokens_of_each_subject_are_those_at_its_place(kind):
    model, tokenizer = tiny_model("llama"), TOKENIZERS[kind]
    model.resize_token_embeddings(450)
    rows = [row for row in json.loads(EXAMPLES.read_text(encoding="utf-8")) if "template" in row]
    facts = {fact.name: fact for fact in load_facts(EXAMPLES).facts}
    assert len(rows) >= 24
    for row in rows:
        fact = facts[f"known_{row['known_id']}"]
        inputs = trace_inputs(
            model,
            tokenizer,
            fact.prompt,
            fact.subject,
            fact.attribute,
            settings=TraceSettings(samples=1),
            occurrence=fact.occurrence,
            counterfactual=None,
        )
        first, end = inputs.span

        def text(ids):
            return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()

        assert text(inputs.tokens.ids[first:end]) == row["subject"]
        assert text(inputs.tokens.ids[:first]) == row["template"].partition("{}")[0].strip()


# ------------------------------------------------------------------------------------------ content of other programs


@pytest.mark.parametrize(
    "bad", ['{"a": 1', "[" * 100_000, '{"known_id": ' + "1" * 5000 + "}", '{"prompt": "a", "prompt": "b"}'], ids=ascii
)
def test_a_bad_line_is_named_and_the_others_are_read(bad, tmp_path):
    path = written(tmp_path, "\n".join([json.dumps(GOOD), "", bad[:110_000], json.dumps(GOOD)]), "facts.jsonl")
    file = load_facts(path)
    assert [fact.name for fact in file.facts] == ["fact_0", "fact_2"]
    assert re.match(
        r"row 1: line 3 (is not JSON|is nested deeper|has a number|has the key 'prompt' twice)", file.bad[0].reason
    )
    assert len(file.bad[0].reason) < 300


def test_line_separators_in_a_text_do_not_split_the_row(tmp_path):
    row = GOOD | {"note": "a\u2028b\x85c"}
    path = written(tmp_path, json.dumps(row, ensure_ascii=False) + "\r\n" + json.dumps(GOOD) + "\r\n", "facts.jsonl")
    assert len(load_facts(path).facts) == 2
    assert load_facts(path).bad == []


@pytest.mark.parametrize("name", ["facts.json", "facts.jsonl"])
def test_a_byte_order_mark_is_ignored(name, tmp_path):
    text = json.dumps([GOOD]) if name == "facts.json" else json.dumps(GOOD)
    assert len(load_facts(written(tmp_path, "\ufeff" + text, name)).facts) == 1


def test_a_key_that_occurs_twice_is_named(tmp_path):
    path = written(tmp_path, '[{"subject": "Rome", "subject": "Oslo", "attribute": "x", "prompt": "Oslo is"}]')
    with pytest.raises(InputError, match="has the key 'subject' twice in the object {'subject': 'Rome', "):
        load_facts(path)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "x" * 101, 10**300, [1], {"a": 1}, "", "\ud800"], ids=ascii
)
def test_an_id_that_is_no_file_name_is_refused(value, tmp_path):
    (bad,) = load_facts(written(tmp_path, [GOOD, GOOD | {"known_id": value}])).bad
    assert bad.reason.startswith('row 1: "known_id" is ')
    assert len(bad.reason) < 300


@pytest.mark.parametrize(("one", "two"), [("a", "A"), ("É", "e\u0301"), ("straße", "STRASSE")])
def test_names_whose_files_some_systems_confuse_are_refused(one, two, tmp_path):
    file = load_facts(written(tmp_path, [GOOD | {"known_id": one}, GOOD | {"known_id": two}, GOOD | {"known_id": "b"}]))
    if two == "e\u0301":  # a combining accent is no letter
        assert 'row 1: "known_id" is' in file.bad[0].reason
        return
    assert [fact.name for fact in file.facts] == [f"known_{one}", "known_b"]
    assert "give ids that differ by more than the case of letters" in file.bad[0].reason


def test_facts_from_python_are_told_apart_by_their_files_too():
    facts = [Fact(name, "Rome is in", "Rome", "Italy") for name in ("a", "A")]
    with pytest.raises(InputError, match="the facts 'a' and 'A' differ by the case of letters only"):
        fact_file(facts)


@pytest.mark.parametrize("key", ["prompt", "subject", "attribute"])
def test_half_of_a_surrogate_pair_is_refused(key, tmp_path):
    row = {"subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"} | {key: "Rome \ud83d is in"}
    (bad,) = load_facts(written(tmp_path, [GOOD, row])).bad
    assert (
        bad.reason
        == f"row 1: \"{key}\" is 'Rome \\ud83d is in'; it has half of a surrogate pair, which is not a character"
    )
