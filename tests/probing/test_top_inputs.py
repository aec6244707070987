"""The prompts that activate a neuron most, compared with sorting all its activations."""

import json
import random
import re

import pandas as pd
import pytest
import torch

from interpret.activations.cache import activation_cache
from interpret.anatomy import check_logits
from interpret.errors import InputError
from interpret.probing.top_inputs import top_activating
from interpret.prompts.prompts import Prompt, load_examples
from reference.tiny import hooks_on
from reference.toy_tokenizers import word_tokenizer

NEURONS = [(2, 5), (0, 40), (2, 3)]


TOKENIZER = word_tokenizer()


def texts(n, seed=0):
    """Return random texts of 1 to 9 words other than w90; the first 80 differ in their first word, so no values tie."""
    chance = random.Random(seed)
    first = chance.sample(range(1, 90), 80)
    rows = [[first[i % 80], *(chance.randrange(1, 90) for _ in range(chance.randrange(9)))] for i in range(n)]
    return [" ".join(f"w{word}" for word in row) for row in rows]


def everything(model, prompts, neurons, tokenizer=TOKENIZER):
    """Return neuron -> (value, prompt, position) for each token, with one pass per prompt."""
    rows = [tokenizer(text).input_ids for text in prompts]
    cache = activation_cache(model, None, rows, [f"neurons.{layer}" for layer, _ in neurons], batch_size=1)
    return {
        (layer, neuron): [
            (value, index, position)
            for index in range(len(rows))
            for position, value in enumerate(cache.of(f"neurons.{layer}", index)[:, neuron].tolist())
        ]
        for layer, neuron in neurons
    }


def sorted_by_hand(said, k, per_prompt):
    if per_prompt == "max":
        best = {}
        for value, index, position in said:
            if index not in best or value > best[index][0]:
                best[index] = (value, index, position)
        said = list(best.values())
    return sorted(said, key=lambda one: (-one[0], one[1], one[2]))[:k]


@pytest.mark.parametrize("per_prompt", ["max", "all"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_best_are_those_of_sorting_everything(family_model, per_prompt, batch_size):
    prompts = texts(20)
    found = top_activating(family_model, TOKENIZER, prompts, NEURONS, k=6, batch_size=batch_size, per_prompt=per_prompt)
    assert [(one.layer, one.neuron, one.rank) for one in found] == [(*n, rank) for n in NEURONS for rank in range(1, 7)]
    said = everything(family_model, prompts, NEURONS)
    for start, neuron in zip((0, 6, 12), NEURONS, strict=True):
        expected = sorted_by_hand(said[neuron], 6, per_prompt)
        for one, (value, prompt, position) in zip(found[start : start + 6], expected, strict=True):
            assert (one.prompt, one.position) == (prompt, position)
            assert one.activation == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert one.text == prompts[prompt]
            assert one.token.strip() == prompts[prompt].split()[position]
    assert hooks_on(family_model) == 0


def test_what_was_planted_comes_first(gpt2):
    mlp = gpt2.transformer.h[0].mlp.c_fc
    kept = {name: value.clone() for name, value in gpt2.state_dict().items()}
    prompts = texts(30)
    prompts[17] = "w2 w3 w90 w4"
    with torch.no_grad():
        gpt2.transformer.h[0].attn.c_proj.weight.zero_()  # the MLP of layer 0 reads nothing but its own token
        gpt2.transformer.wpe.weight.zero_()
        cache = activation_cache(gpt2, None, [[90]], ["mlp_in.0"])
        mlp.weight[:, 7] = cache["mlp_in.0"][0, 0]  # a neuron that looks for word 90
        mlp.bias[7] = 0
    found = top_activating(gpt2, TOKENIZER, prompts, [(0, 7)], k=3)
    gpt2.load_state_dict(kept)
    assert (found[0].prompt, found[0].position, found[0].token) == (17, 2, " w90")
    assert found[0].activation > found[1].activation


@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_equal_values_stand_in_the_order_of_prompts_and_tokens(llama, batch_size):
    up = llama.model.layers[1].mlp.up_proj.weight
    kept = up[3].clone()
    with torch.no_grad():
        up[3] = 0  # the activation is 0 everywhere
    prompts = ["w5 w6", "w7", "w8 w9", "w10", "w11"]
    top = top_activating(llama, TOKENIZER, prompts, [(1, 3)], k=3, batch_size=batch_size)
    every = top_activating(llama, TOKENIZER, prompts, [(1, 3)], k=4, batch_size=batch_size, per_prompt="all")
    with torch.no_grad():
        up[3] = kept
    assert {one.activation for one in every} == {0.0}
    assert [(one.prompt, one.position) for one in top] == [(0, 0), (1, 0), (2, 0)]
    assert [(one.prompt, one.position) for one in every] == [(0, 0), (0, 1), (1, 0), (2, 0)]


def test_a_generator_is_read_batch_by_batch_and_nothing_of_it_kept(llama):
    read, passes = [], []
    handle = llama.model.register_forward_hook(lambda *_: passes.append(len(read)))
    check_logits(llama)  # its passes are not counted
    passes.clear()

    def stream():
        for index, text in enumerate(texts(23)):
            read.append(index)
            yield text

    found = top_activating(llama, TOKENIZER, stream(), NEURONS, k=2, batch_size=5)
    handle.remove()
    assert passes == [5, 10, 15, 20, 23]
    assert found == top_activating(llama, TOKENIZER, texts(23), NEURONS, k=2, batch_size=5)


def test_memory_does_not_grow_with_the_number_of_prompts(llama, monkeypatch):
    """Count the texts that are alive: k per neuron, and those of the current batch and the next."""
    living, most = set(), []

    class Counted(str):
        def __del__(self):
            living.discard(id(self))

    def stream():
        for text in texts(120):
            counted = Counted(text)
            living.add(id(counted))
            most.append(len(living))
            yield counted

    top_activating(llama, TOKENIZER, stream(), NEURONS, k=2, batch_size=4)
    assert max(most) <= 2 * len(NEURONS) + 2 * 4 + 1


def test_fewer_prompts_than_k_are_all_returned(gpt2):
    found = top_activating(gpt2, TOKENIZER, ["w5 w6", "w7"], [(1, 3)], k=10)
    assert sorted(one.prompt for one in found) == [0, 1]
    every = top_activating(gpt2, TOKENIZER, ["w5 w6", "w7"], [(1, 3)], k=10, per_prompt="all")
    assert sorted((one.prompt, one.position) for one in every) == [(0, 0), (0, 1), (1, 0)]


def test_a_neuron_named_twice_is_returned_once(gpt2):
    once = top_activating(gpt2, TOKENIZER, texts(5), [(1, 3), (0, 2)], k=2)
    assert top_activating(gpt2, TOKENIZER, texts(5), [(1, 3), (0, 2), (1, 3)], k=2) == once


def test_tokens_the_tokenizer_adds_do_not_count(family_model):
    tokenizer = word_tokenizer(opens=True)
    prompts = texts(8)
    found = top_activating(family_model, tokenizer, prompts, [(1, 3)], k=30, per_prompt="all")
    said = [one for one in everything(family_model, prompts, [(1, 3)], tokenizer)[1, 3] if one[2] > 0]
    expected = sorted_by_hand(said, 30, "all")
    assert len(found) == min(30, len(said))
    assert [(one.prompt, one.position) for one in found] == [one[1:] for one in expected]
    for one in found:
        assert one.token.strip() == prompts[one.prompt].split()[one.position - 1]


def test_a_prompt_file_is_read_as_elsewhere(gpt2, tmp_path):
    path = tmp_path / "prompts.json"
    entries = [{"prompt": "w5 w6", "category": "a", "raw": True}, {"prompt": "w7", "category": "a"}]
    path.write_text(json.dumps({"examples": entries}))
    tokenizer = word_tokenizer()
    tokenizer.chat_template = "w30 {% for m in messages %}{{ m['content'] }}{% endfor %} w31"
    found = top_activating(gpt2, tokenizer, load_examples(path), [(1, 3)], k=10, per_prompt="all")
    assert {one.prompt: one.text for one in found} == {0: "w5 w6", 1: "w30 w7 w31"}
    assert sorted((one.prompt, one.position) for one in found) == [(0, 0), (0, 1), (1, 1)]
    said = everything(gpt2, ["w30 w7 w31"], [(1, 3)])[1, 3][1][0]
    assert next(one for one in found if one.prompt == 1).activation == pytest.approx(said, rel=1e-5)


def test_the_result_is_a_table(gpt2):
    frame = pd.DataFrame(top_activating(gpt2, TOKENIZER, texts(5), [(1, 3)], k=2))
    assert list(frame.columns) == "layer neuron rank prompt position token activation text".split()


def test_a_model_in_training_mode_stays_so(gpt2):
    expected = top_activating(gpt2, TOKENIZER, texts(5), [(1, 3)])
    gpt2.train()
    gpt2.transformer.drop.p = 0.5
    assert top_activating(gpt2, TOKENIZER, texts(5), [(1, 3)]) == expected
    assert gpt2.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"neurons": []}, "neurons is empty: name at least one, as (layer, neuron)"),
        ({"neurons": [(4, 0)]}, "layer 4 does not exist; this model has layers 0 to 3"),
        ({"neurons": [(0, 48)]}, "neuron 48 does not exist; layer 0 has neurons 0 to 47"),
        ({"k": 0}, "k is 0: ask for at least one prompt"),
        ({"batch_size": 0}, "batch_size is 0: give at least 1"),
        ({"per_prompt": "mean"}, "unknown per_prompt 'mean'; Allowed: max, all"),
        ({"prompts": []}, "prompts is empty: give at least one"),
        ({"prompts": "w5 w6"}, "prompts is a single text: give a list or another iterable of texts"),
        ({"prompts": ["w5", ""]}, "prompts[1]: prompt '' has no tokens"),
        (
            {"prompts": ["w5", ""], "tokenizer": word_tokenizer(opens=True)},
            "prompts[1]: prompt '' has no tokens of its own",
        ),
        ({"prompts": ["w5", "w6 " * 65]}, "prompts[1] has 65 tokens; this model reads at most 64"),
        (
            {"prompts": [Prompt("a_1", " ".join(["w6"] * 70), "a")]},
            "prompts[0] has 70 tokens; this model reads at most 64",
        ),
    ],
)
def test_bad_input_is_refused(llama, arguments, message):
    good = {"tokenizer": TOKENIZER, "prompts": ["w5 w6"], "neurons": [(0, 0)]}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        top_activating(llama, **{**good, **arguments})
    assert hooks_on(llama) == 0
