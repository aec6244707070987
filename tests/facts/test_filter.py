import re
from itertools import count

import pytest
import torch

from interpret.errors import InputError
from interpret.facts.files import Fact
from interpret.facts.filter import CHUNK, ROOM, FilterCounts, known
from reference.kinds import KINDS
from reference.tiny import hooks_on, wide_model
from reference.toy_tokenizers import TOKENIZERS, byte_level

PROMPTS = ["The Eiffel Tower is in", "I love eating", "Sure, I will repeat for you: hello. I", "Tower", "is the"]


def fact(prompt, attribute, name="fact_0"):
    return Fact(name, prompt, prompt.split()[0], attribute)


def model_that_writes(tokenizer, texts):
    """A Llama that predicts the next token of a text from the current token alone."""
    model = wide_model("llama")
    head = model.get_output_embeddings().weight.data.zero_()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    states = model.model.norm(model.get_input_embeddings().weight.data).detach()
    for text in texts:
        ids = tokenizer(text).input_ids
        for token, after in zip(ids, ids[1:], strict=False):
            head[after] += states[token]
    return model


PARIS = "The Eiffel Tower is in Paris. I love cheese"
JAPAN = "Tower of Japan!<|im_end|>"
WRITER = model_that_writes(byte_level(), [PARIS, JAPAN])


def answered(facts, model=WRITER, tokenizer=None, **options):
    return list(known(model, tokenizer or byte_level(), facts, **options))


# ------------------------------------------------------------------------------------- against stock generation


@pytest.mark.matrix
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("tokenizer_kind", list(TOKENIZERS))
def test_answers_are_what_stock_generation_writes_after_each_prompt_alone(kind, tokenizer_kind):
    model, tokenizer = wide_model(kind), TOKENIZERS[tokenizer_kind]
    found = answered([fact(prompt, "cheese") for prompt in PROMPTS], model, tokenizer)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([tokenizer(prompt).input_ids])
        n_new = len(tokenizer(f"{prompt} cheese").input_ids) - ids.shape[1] + ROOM
        ends = tokenizer.all_special_ids
        stock = model.generate(ids, max_new_tokens=n_new, do_sample=False, eos_token_id=ends, pad_token_id=0)
        written = [token for token in stock[0, ids.shape[1] :].tolist() if token not in ends]
        assert answer.answer_text == tokenizer.decode(written, clean_up_tokenization_spaces=False)
        with torch.no_grad():
            p = model(ids).logits[0, -1].softmax(-1).max().item()
        assert answer.p == pytest.approx(p, rel=1e-4)


@pytest.mark.parametrize(("batch_size", "times"), [(1, 1), (2, 2), (3, 2), (32, 4)])
def test_facts_come_back_in_their_order_whatever_the_batches(batch_size, times):
    facts = [fact(prompt, attribute) for prompt in PROMPTS * times for attribute in ("cheese", "cheese and Paris")]
    model = wide_model("llama")
    found = answered(facts, model, batch_size=batch_size)
    alone = [answered([one], model)[0] for one in facts[: 2 * len(PROMPTS)]] * times
    assert [answer.fact for answer in found] == facts
    assert [answer.answer_text for answer in found] == [answer.answer_text for answer in alone]
    assert [answer.p for answer in found] == pytest.approx([answer.p for answer in alone], rel=1e-4)


# ----------------------------------------------------------------------------------------------- what is correct


@pytest.mark.parametrize(
    ("prompt", "attribute", "by_words", "by_first_token"),
    [
        ("The Eiffel Tower is in", "Paris", "", ""),
        ("The Eiffel Tower is in", "paris", "", "several tokens"),  # words ignores case, first_token does not
        ("The Eiffel Tower is in", "Par", "wrong answer", "wrong answer"),  # not a whole word
        ("The Eiffel Tower is in", "Japan", "wrong answer", "wrong answer"),
        ("The Eiffel Tower is in", "Paris. I love cheese", "", "several tokens"),
        ("The Tower of", "Japan", "", ""),
        ("The Tower of ", "Japan", "wrong answer", "wrong answer"),  # the model continues after the space
    ],
)
def test_each_rule_says_which_answers_are_correct(prompt, attribute, by_words, by_first_token):
    for rule, reason in (("words", by_words), ("first_token", by_first_token)):
        (answer,) = answered([fact(prompt, attribute)], rule=rule)
        assert (answer.reason, answer.correct) == (reason, not reason)


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_an_answer_of_several_tokens_is_read_whole(kind):
    tokenizer = TOKENIZERS[kind]
    model = model_that_writes(tokenizer, ["I am in Paris"])
    (answer,) = answered([fact("I am in", "Paris")], model, tokenizer)
    assert answer.correct
    assert answer.answer_text.startswith("Paris" if kind == "sentence_piece" else " Paris")


def test_the_first_token_rule_writes_one_token():
    (answer,) = answered([fact("The Eiffel Tower is in", "Paris")], rule="first_token")
    assert answer.answer_text == " Paris"


def test_nothing_is_read_after_the_end_of_the_text():
    (answer,) = answered([fact("The Tower of", "Japan")])
    assert answer.answer_text == " Japan!"


def test_a_prompt_without_room_for_the_answer_is_too_long():
    long = fact("Tower " * 70 + "of", "Japan")
    short = fact("The Tower of", "Japan")
    found = answered([long, short])
    assert [(answer.reason, answer.correct) for answer in found] == [("too long", False), ("", True)]
    assert (found[0].answer_text, found[0].p != found[0].p) == ("", True)


def test_what_comes_in_is_kept_or_dropped_for_a_reason():
    pairs = [
        ("The Eiffel Tower is in", "Paris"),
        ("The Tower of", "Paris"),
        ("Tower " * 70, "x"),
        ("The Tower of", "cheese"),
    ]
    counts = FilterCounts()
    for answer in answered([fact(*pair) for pair in pairs]):
        counts.add(answer)
    assert (counts.n_in, counts.n_kept, counts.n_dropped) == (4, 1, 3)
    assert counts.dropped == {"wrong answer": 2, "too long": 1}


# ------------------------------------------------------------------------------------------------ batches, errors


def test_an_endless_list_of_facts_is_taken_chunk_by_chunk():
    taken = []

    def endless():
        for index in count():
            taken.append(index)
            yield fact("The Tower of", "Japan", f"fact_{index}")

    found = known(WRITER, byte_level(), endless(), batch_size=2)
    assert next(found).fact.name == "fact_0"
    assert len(taken) == 2 * CHUNK


def test_a_model_in_training_answers_without_dropout_and_stays_in_training():
    model = wide_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    facts = [fact(prompt, "cheese") for prompt in PROMPTS]
    still = answered(facts, model)
    found = answered(facts, model.train())
    assert [answer.p for answer in found] == [answer.p for answer in still]
    assert all(module.training for module in model.modules())
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "word"}, "unknown rule 'word'; did you mean 'words'? Allowed: words, first_token"),
        ({"batch_size": 0}, "batch_size is 0; give at least 1"),
    ],
)
def test_a_wrong_argument_is_an_error_before_the_model_runs(options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        known(WRITER, byte_level(), [], **options)
