"""Control of hidden states: wrong arguments are named before anything is trained."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from interpret.anatomy import anatomy_of
from interpret.control.training import (
    supervised_control,
    word_scorer,
)
from interpret.errors import InputError, UnsupportedModelError
from reference.controlled import BOTH, IDS, TARGET, assert_same, reinforced, snapshot, supervised
from reference.kinds import MORE_KINDS, D
from reference.tiny import tiny_model


def refused(message):
    return pytest.raises(InputError, match=f"^{re.escape(message)}$")


def enter(context):
    with context:
        pytest.fail("the body must not run")


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 0}, "layer 0 is the embedding, which no MLP writes: give a layer from 1 to 4"),
        ({"layer": 5}, "layer 5 does not exist: give an index of hidden_states from 1 to 4"),
        ({"layer": -1}, "layer -1 does not exist: give an index of hidden_states from 1 to 4"),
        ({"layer": 2.0}, "layer 2.0 does not exist: give an index of hidden_states from 1 to 4"),
        ({"layer": "2"}, "layer '2' does not exist: give an index of hidden_states from 1 to 4"),
        ({"positions": []}, "positions resolve to []: give at least one token position, without repeats"),
        ({"positions": [1, -4]}, "positions resolve to [1, 1]: give at least one token position, without repeats"),
        ({"positions": [5]}, "position 5 does not exist: this prompt has tokens 0 to 4"),
        ({"positions": [1.5]}, "position 1.5 does not exist: this prompt has tokens 0 to 4"),
        ({"steps": 0}, "steps is 0: give a whole number of at least 1"),
        ({"steps": 2.0}, "steps is 2.0: give a whole number of at least 1"),
        ({"lr": 0.0}, "lr is 0.0: give a learning rate above 0, such as 3e-4"),
        ({"lr": math.nan}, "lr is nan: give a learning rate above 0, such as 3e-4"),
    ],
)
def test_a_wrong_argument_is_named(llama, controlled, changes, message):
    before = snapshot(llama)
    with refused(message):
        enter(controlled(llama, **changes))
    assert_same(before, snapshot(llama))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(31), "target has the shape [31]: give [32], or [2, 32] with one row per position"),
        (torch.zeros(3, D), "target has the shape [3, 32]: give [32], or [2, 32] with one row per position"),
        (torch.full((D,), math.nan), "target contains values that are not finite (NaN or infinity)"),
        (torch.full((D,), -math.inf), "target contains values that are not finite (NaN or infinity)"),
    ],
)
def test_a_wrong_target_is_named(llama, target, message):
    with refused(message):
        enter(supervised(llama, target=target))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "ids has the shape [1, 0] and dtype torch.float32: give the token ids of one prompt, at least one"),
        (
            [[1, 2], [3, 4]],
            "ids has the shape [2, 2] and dtype torch.int64: give the token ids of one prompt, at least one",
        ),
        ([0.5], "ids has the shape [1, 1] and dtype torch.float32: give the token ids of one prompt, at least one"),
        ([3, 97], "ids contains 97; this model has token ids 0 to 96"),
        ([1] * 65, "ids has 65 tokens; this model reads at most 64"),
    ],
)
def test_a_wrong_prompt_is_named(llama, ids, message):
    with refused(message):
        enter(supervised_control(llama, ids, layer=1, positions=[0], target=TARGET))


def test_a_prompt_may_be_a_tensor_with_or_without_a_batch_dimension(llama):
    losses = []
    for ids in (IDS, torch.tensor(IDS), torch.tensor([IDS])):
        with supervised_control(llama, ids, layer=1, positions=[0], target=TARGET, steps=1) as got:
            losses.append(got)
    assert losses[0] == losses[1] == losses[2]


def test_quantised_and_offloaded_weights_are_refused():
    for kind, weight, state in (
        ("gpt2", torch.zeros(4, 4, dtype=torch.int8), "quantised (torch.int8)"),
        ("opt", torch.zeros(4, 4, device="meta"), "offloaded"),
    ):
        model = tiny_model(kind)
        block = anatomy_of(model).layers[1]
        part, name = (block.mlp.c_fc, "c_fc.weight") if kind == "gpt2" else (block.fc1, "0.weight")
        part.weight = nn.Parameter(weight, requires_grad=False)
        with refused(
            f"'{name}' of the MLP that writes layer 2 is {state}, so it cannot be trained: "
            "load the model unquantised and without offloading"
        ):
            enter(supervised(model))


def test_eight_bit_models_are_refused_as_they_are_opened(llama):
    quantize = pytest.importorskip("interpret.models.quantize")
    pytest.importorskip("bitsandbytes")
    model = quantize.quantize_(copy.deepcopy(llama), 8)
    with pytest.raises(InputError, match=r"of the MLP that writes layer 2 is quantised \(torch.int8\)"):
        enter(supervised(model))


def test_training_that_diverges_is_an_error_and_leaves_nothing(llama):
    before = snapshot(llama)
    with pytest.raises(
        InputError, match=r"^training diverges: after \d steps the loss is (inf|nan); give a smaller lr than 1e\+30$"
    ):
        enter(supervised(llama, lr=1e30))
    assert_same(before, snapshot(llama))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reader": lambda states: "good"}, "the reader returned 'good': it has to return 2 texts, one per state"),
        ({"reader": lambda states: ["a"]}, "the reader returned ['a']: it has to return 2 texts, one per state"),
        ({"scorer": lambda text: None}, "the scorer returned None for 'good': it has to return a finite number"),
        ({"scorer": lambda text: math.nan}, "the scorer returned nan for 'good': it has to return a finite number"),
    ],
)
def test_a_wrong_reader_or_scorer_is_named(llama, changes, message):
    before = snapshot(llama)
    with refused(message):
        enter(reinforced(llama, **changes))
    assert_same(before, snapshot(llama))


def test_scorers_without_words_are_refused():
    with refused("good and bad are both empty: give the scorer at least one word to look for"):
        word_scorer()
    with refused("' ' contains no word to search for"):
        word_scorer(good=["x", " "])


def test_models_of_no_known_family_are_refused():
    with pytest.raises(UnsupportedModelError, match="is not of a supported family"):
        enter(supervised(nn.Linear(2, 2)))


@pytest.mark.parametrize("kind", [kind for kind in ("mixtral", "gpt_oss", "deepseek_v3") if kind in MORE_KINDS])
def test_mixtures_of_experts_are_refused(kind):
    with pytest.raises(UnsupportedModelError, match="^the MLP that writes layer 2 is a mixture of experts"):
        enter(supervised(tiny_model(kind)))
