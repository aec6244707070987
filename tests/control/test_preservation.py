"""Answers to facts before and after a control, on a toy model whose answers are known by construction."""

import re

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interpret.control._preservation import accuracy, preservation
from interpret.control.training import read_answer, reinforcement_control, supervised_control, word_scorer
from interpret.engine.greedy import answers
from interpret.errors import InputError
from interpret.records import Preservation, csv_header, from_csv, to_csv
from reference.kinds import D
from reference.toy_tokenizers import word_tokenizer

WORDS = ["<pad>", *"the tower is in paris rome france italy capital of a b c d e".split()]
NEXT = {"in": "paris", "paris": "france", "of": "italy", "italy": "rome", "a": "b", "b": "c", "c": "d"}


def test_answers_do_not_depend_on_the_batch(family_model):
    tokenizer = word_tokenizer()
    prompts = ["w5 w6 w7 w8 w9 w10 w11", "w20", "w30 w40 w50"]
    family_model.generation_config.eos_token_id = 0  # so that transformers infers no mask from padding
    alone = [answers(family_model, tokenizer, [prompt])[0] for prompt in prompts]
    assert len(set(alone)) > 1
    for batch_size in (1, 2, 3):
        assert answers(family_model, tokenizer, prompts, batch_size=batch_size) == alone


@pytest.fixture
def bigrams():
    """A model that predicts NEXT[word] from the current word alone, and its tokenizer."""
    tokenizer = word_tokenizer(WORDS)
    size = len(WORDS)
    config = LlamaConfig(
        vocab_size=size, hidden_size=D, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size, D) * 4)
        model.lm_head.weight.zero_()
        for word, after in NEXT.items():
            model.lm_head.weight[WORDS.index(after), WORDS.index(word)] = 1
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
            layer.mlp.gate_proj.weight.normal_(std=0.5)
            layer.mlp.up_proj.weight.normal_(std=0.5)
    return model, tokenizer


FACTS = [("the tower is in", "Paris"), ("a", "b c"), ("the capital of", "Rome"), ("c", "d"), ("in", "par")]


def test_answers_are_what_the_toy_model_was_built_to_say(bigrams):
    model, tokenizer = bigrams
    prompts = ["the tower is in", "a", "the capital of"]
    assert answers(model, tokenizer, prompts, new_tokens=2) == ["paris france", "b c", "italy rome"]


def test_the_reader_of_answers_judges_all_states_by_the_answer_of_its_step(bigrams):
    """The toy model's answer flips at the step where training has carried the state far enough."""
    model, tokenizer = bigrams
    reader = read_answer(model, tokenizer, "the tower is in", new_tokens=1)
    assert reader(torch.zeros(3, D)) == ["paris"] * 3
    ids = tokenizer("the tower is in").input_ids
    where = {"layer": 2, "positions": [-2, -1], "reader": reader, "scorer": word_scorer(bad="paris")}
    with reinforcement_control(model, ids, **where, steps=60, lr=3e-2) as looks:
        assert answers(model, tokenizer, ["the tower is in"], new_tokens=1) == [looks[-1].texts[1]]
    assert looks[0].texts == ["paris", "paris"]
    assert looks[-1].texts[1] != "paris"
    assert looks[-1].rewards == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "attribute", "right"),
    [
        (" Paris, France", "Paris", True),
        ("\n“Paris” it is", "Paris", True),
        (' "Heroes" by', '"Heroes"', True),
        (" the city of Paris", "Paris", False),
        (" Parisian", "Paris", False),
        (" 1990.", "1990", True),
        (" 19", "1990", False),
        ("", "Paris", False),
    ],
)
def test_an_answer_is_right_if_it_starts_with_the_attribute(bigrams, answer, attribute, right):
    model, tokenizer = bigrams
    (row,) = preservation(model, tokenizer, [("a", attribute)], before=[answer])
    assert row.correct_before is right


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_known_table(bigrams, batch_size):
    """The control changes one fact and preserves the others, by construction."""
    model, tokenizer = bigrams
    prompts = [prompt for prompt, _ in FACTS]
    before = answers(model, tokenizer, prompts, new_tokens=3, batch_size=batch_size)
    ids = tokenizer("the tower is in").input_ids
    italy = 4 * torch.eye(len(WORDS), D)[WORDS.index("of")]  # the state after which the model says "italy"
    with supervised_control(model, ids, layer=2, positions=[-1], target=italy, steps=50, lr=1e-2) as losses:
        rows = preservation(model, tokenizer, FACTS, before=before, new_tokens=3, batch_size=batch_size)
    assert losses[-1] < 0.01 * losses[0]
    assert [(row.prompt, row.attribute) for row in rows] == FACTS
    assert [row.correct_before for row in rows] == [True, True, False, True, False]
    assert [row.correct_after for row in rows] == [False, True, False, True, False]
    assert rows[0].before.startswith("paris")
    assert rows[0].after.startswith("italy")
    assert accuracy(rows) == (3 / 5, 2 / 5)
    assert preservation(model, tokenizer, FACTS, before=before, new_tokens=3)[0].correct_after
    table = csv_header(Preservation) + to_csv(rows)
    assert from_csv(Preservation, table) == rows


def test_answers_end_at_the_end_of_text_token_and_leave_the_mode(bigrams):
    model, tokenizer = bigrams
    model.generation_config.eos_token_id = [WORDS.index("france")]
    model.train()
    modes = []
    handle = model.model.layers[0].register_forward_hook(lambda module, args, output: modes.append(module.training))
    assert answers(model, tokenizer, ["in", "a"], new_tokens=3)[0] == "paris"
    handle.remove()
    assert set(modes) == {False}
    assert model.training


def refused(message):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def test_wrong_facts_are_named(bigrams):
    model, tokenizer = bigrams
    with refused("before has 1 answers for 5 facts: give one answer per fact"):
        preservation(model, tokenizer, FACTS, before=["b"])
    with refused("fact 1 has an empty attribute: give the words that continue its prompt"):
        preservation(model, tokenizer, [("a", "b"), ("a", " ")], before=["b", "b"])
    with refused("fact 0: 'b c' has 2 tokens; give new_tokens of 3 or more"):
        preservation(model, tokenizer, [("a", "b c")], before=["b"], new_tokens=2)
    for sizes in ({"new_tokens": 0}, {"batch_size": -1}):
        with pytest.raises(InputError, match="both must be at least 1$"):
            answers(model, tokenizer, ["a"], **sizes)
    with refused("prompt 1 is empty"):
        answers(model, tokenizer, ["a", " "])
    with refused("prompt 0 has 30 tokens; with 8 new tokens it exceeds the 32 that this model reads"):
        answers(model, tokenizer, ["a " * 30])
    with refused("rows is empty: an accuracy needs at least one fact"):
        accuracy([])
