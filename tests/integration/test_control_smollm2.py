"""Control of the real demo model: change where the Eiffel Tower is, and check which other facts change."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.control._preservation import accuracy, preservation
from interpret.control.training import read_answer, reinforcement_control, supervised_control, word_scorer
from interpret.engine.greedy import answers
from interpret.models.opening import load

EIFFEL, COLOSSEUM = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"
FACTS = [
    (EIFFEL, "Paris"),
    (COLOSSEUM, "Rome"),
    ("The capital of Italy is", "Rome"),
    ("The capital of Japan is", "Tokyo"),
    ("The opposite of hot is", "cold"),
]
LAYER = 29  # of 30: after a change in an earlier layer, attention still copies the city from the subject's tokens


@pytest.fixture(scope="module")
def demo() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def before(demo: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> list[str]:
    model, tokenizer = demo
    return answers(model, tokenizer, [prompt for prompt, _ in FACTS])


def test_a_state_trained_to_be_another_prompts_changes_the_answer_and_keeps_the_facts(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], before: list[str]
) -> None:
    model, tokenizer = demo
    with torch.no_grad():
        states = model(torch.tensor([tokenizer(COLOSSEUM).input_ids]), output_hidden_states=True).hidden_states
    ids, target = tokenizer(EIFFEL).input_ids, states[LAYER][0, -1]
    with supervised_control(model, ids, layer=LAYER, positions=[-1], target=target, steps=15) as losses:
        rows = preservation(model, tokenizer, FACTS, before=before)
    assert losses[-1] < 0.4 * losses[0]
    assert rows[0].after.startswith(" Rome")
    assert [row.correct_after for row in rows] == [False, True, True, True, True]
    assert accuracy(rows) == (1.0, 0.8)
    assert answers(model, tokenizer, [prompt for prompt, _ in FACTS]) == before


def test_a_punished_answer_is_given_up(
    demo: tuple[PreTrainedModel, PreTrainedTokenizerBase], before: list[str]
) -> None:
    model, tokenizer = demo
    reader = read_answer(model, tokenizer, EIFFEL, new_tokens=2)
    with reinforcement_control(
        model, tokenizer(EIFFEL).input_ids, layer=LAYER, positions=[-1],
        reader=reader, scorer=word_scorer(bad="Paris"), steps=14, lr=1e-3,
    ) as looks:  # fmt: skip
        after = answers(model, tokenizer, [EIFFEL])
    assert looks[0].rewards == [-1.0]
    assert looks[-1].rewards == [0.0]
    assert looks[-1].alignment[0] < 0.9
    assert "Paris" not in after[0]
    assert answers(model, tokenizer, [prompt for prompt, _ in FACTS]) == before
