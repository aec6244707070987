"""``interpret.interpret`` and ``interpret.interpret_vectors``, the functions of the published package."""

import re

import pandas
import pytest
import torch

import interpret
from interpret import InputError, InterpretationPrompt
from reference.kinds import D, L
from reference.overlay import reference_greedy
from reference.tiny import tiny_model
from reference.toy_tokenizers import TOKENIZERS, byte_level

TOKENIZER = byte_level()
REPEAT = ("Say", 0, 0, "!")


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    model = tiny_model(request.param)
    torch.manual_seed(0)
    model.resize_token_embeddings(420)
    model.generation_config.eos_token_id = 1
    return model


def texts_of(model, template, states, k, n):
    """Return the texts of states, computed only by full forward passes."""
    texts = []
    for state in states:
        info = {k: (list(template.slots), state.expand(1, len(template.slots), -1))}
        ids = reference_greedy(model, template.ids, info, n)[len(template.ids) :]
        texts.append(TOKENIZER.decode(ids[: ids.index(1)] if 1 in ids else ids))
    return texts


def test_every_pair_has_a_row_with_the_documented_columns(model):
    template = InterpretationPrompt(TOKENIZER, REPEAT)
    pairs = [(0, 0), (2, -1), (-1, 1)]
    table = interpret.interpret(
        original_prompt="I love pizza",
        tokenizer=TOKENIZER,
        interpretation_prompt=template,
        model=model,
        tokens_to_interpret=pairs,
        bs=2,
        max_new_tokens=4,
        k=2,
    )
    ids = TOKENIZER("I love pizza").input_ids
    frame = pandas.DataFrame(table)
    columns = ["prompt", "interpretation", "layer", "token", "token_decoded", "relevancy_score"]
    assert list(frame.columns[:6]) == columns
    assert frame["layer"].tolist() == [0, 2, L]
    assert frame["token"].tolist() == [0, len(ids) - 1, 1]
    assert frame["token_decoded"].tolist() == [TOKENIZER.decode([ids[i]]) for i in (0, -1, 1)]
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    expected = texts_of(model, template, [states[layer][0, token] for layer, token in pairs], 2, 4)
    assert frame["interpretation"].tolist() == expected
    for _, row in frame.iterrows():
        signed = [p - q for p, q in zip(row["probability"], row["probability_without_insertion"], strict=True)]
        assert row["signed_relevancy"] == signed
        assert row["relevancy_score"] == [abs(value) for value in signed]


def test_many_prompts_and_templates_in_one_call(model):
    made = [InterpretationPrompt(TOKENIZER, REPEAT), InterpretationPrompt(TOKENIZER, (0, "is"))]
    table = interpret.interpret(["I love", "The city"], TOKENIZER, made, model, [(1, 0), (1, 1)], max_new_tokens=3)
    one = interpret.interpret("The city", TOKENIZER, made[1], model, [(1, 0), (1, 1)], max_new_tokens=3)
    assert len(table["layer"]) == 8
    assert table["interpretation"][6:] == one["interpretation"]
    assert set(table["interpretation_prompt"]) == {template.text for template in made}


def test_vectors_give_the_texts_of_the_same_states(model):
    template = InterpretationPrompt(TOKENIZER, REPEAT)
    ids = TOKENIZER("I love pizza").input_ids
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
    texts = interpret.interpret_vectors(states, model, template, TOKENIZER, k=2, max_new_tokens=4)
    pairs = [(3, token) for token in range(len(ids))]
    table = interpret.interpret("I love pizza", TOKENIZER, template, model, pairs, max_new_tokens=4, k=2)
    assert texts == table["interpretation"] == texts_of(model, template, states, 2, 4)
    listed = interpret.interpret_vectors(list(states), model, template, TOKENIZER, 2, 1, 4)
    assert listed == texts_of(model, template, states, 1, 4)
    if model.config.model_type == "llama":
        assert listed != texts, "k is honoured"


def test_each_slot_holds_the_vector():
    """After insertion, every slot holds its vector, at the input of the edited layer."""
    model = tiny_model("llama")
    for tokenizer in TOKENIZERS.values():
        template = InterpretationPrompt(tokenizer, (0, "a", 0, 0))
        ids = torch.tensor([template.ids]) % 97
        own = torch.randn(1, 3, D)
        for vectors in (own, own[:, :1].expand(1, 3, D)):
            output = interpret.forward_interpret(
                model, ids, insert_info=[{2: (template.slots, vectors)}], output_hidden_states=True
            )
            assert torch.equal(output.hidden_states[2][:, template.slots], vectors)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(5, 0)], "layer 5 does not exist; there are layers 0 to 4, or -5 to -1"),
        ([(0, 99)], "prompt prompt_0: token 99 does not exist; there are tokens 0 to "),
        ([], "there are no states to interpret; give at least one (layer, token) pair"),
    ],
)
def test_pairs_outside_the_prompt_are_errors(model, pairs, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        interpret.interpret("I love pizza", TOKENIZER, InterpretationPrompt(TOKENIZER, REPEAT), model, pairs)


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(InputError, match="^prompt prompt_1: prompt '' has no tokens$"):
        interpret.interpret(["a", ""], TOKENIZER, InterpretationPrompt(TOKENIZER, REPEAT), model, [(0, 0)])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.zeros(2, D + 1), f"vecs[0] has shape [{D + 1}]; the model's hidden width is {D}"),
        (torch.zeros(D), f"vecs[0] has shape []; the model's hidden width is {D}"),
        (
            [torch.zeros(D), torch.full((D,), float("nan"))],
            "vecs[1] contains NaN or infinity; give finite vectors",
        ),
    ],
)
def test_wrong_vectors_are_named(model, vectors, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        interpret.interpret_vectors(vectors, model, InterpretationPrompt(TOKENIZER, REPEAT), TOKENIZER)
