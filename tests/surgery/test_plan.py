import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from interpret.errors import SpecError
from interpret.surgery.plan import plan_surgery
from reference.kinds import D, L

COUNTS = [3, 5]  # tokens of the two samples of every plan here


def vectors(n_positions: int, width: int = D) -> torch.Tensor:
    return torch.ones(1, n_positions, width)


def plan(insert_info, **changes):
    return plan_surgery(insert_info, **{"token_counts": COUNTS, "n_layers": L, "width": D, **changes})


def first(info):
    """A batch whose first sample has this info."""
    return [info, None]


BAD = {
    "not a list": (
        {1: ([0], vectors(1))},
        "insert_info is a dict; give a list with one dict (or None) per sample",
    ),
    "a string": ("normalized", "insert_info is a str; give a list with one dict (or None) per sample"),
    "too few samples": (
        [{1: ([0], vectors(1))}],
        "insert_info has 1 entries for a batch of 2 samples; give one dict (or None) per sample",
    ),
    "too many samples": (
        [None] * 5,
        "insert_info has 5 entries for a batch of 2 samples; give one dict (or None) per sample",
    ),
    "sample is a list": (first([1]), "insert_info[0]: expected a dict or None, got a list"),
    "mode misspelt": (
        first({"replacing_mode": "nomralized"}),
        "insert_info[0]: unknown replacing_mode 'nomralized'; did you mean 'normalized'? "
        "Allowed: normalized, addition",
    ),
    "mode misspelt, second sample": (
        [None, {"replacing_mode": "adddition"}],
        "insert_info[1]: unknown replacing_mode 'adddition'; did you mean 'addition'? "
        "Allowed: normalized, addition",
    ),
    "mode is None": (
        first({"replacing_mode": None}),
        "insert_info[0]: unknown replacing_mode None; Allowed: normalized, addition",
    ),
    "option misspelt": (
        first({"overlay_strenght": 0.5}),
        "insert_info[0]: key 'overlay_strenght' looks like 'overlay_strength'; "
        "correct it, or use another name for your own key",
    ),
    "layer is a string": (
        first({"1": ([0], vectors(1))}),
        "insert_info[0]: key '1' is a string; layers are integers: use 1",
    ),
    "layer is a negative string": (
        first({"-1": ([0], vectors(1))}),
        "insert_info[0]: key '-1' is a string; layers are integers: use -1",
    ),
    "layer is nearly a number": (
        [None, {"--1": ([0], vectors(1)), "overlay_strength": "x"}],
        "insert_info[1]: overlay_strength is 'x'; give a finite number",
    ),
    "layer L": (
        first({L: ([0], vectors(1))}),
        "insert_info[0]: layer 4 does not exist; this model has layers 0 to 3",
    ),
    "layer negative": (
        first({-1: ([0], vectors(1))}),
        "insert_info[0]: layer -1 does not exist; this model has layers 0 to 3",
    ),
    "layer is a float": (
        first({1.0: ([0], vectors(1))}),
        "insert_info[0]: key 1.0 is a float; layers are integers, all other keys are strings",
    ),
    "layer is True": (
        first({True: ([0], vectors(1))}),
        "insert_info[0]: key True is a bool; layers are integers, all other keys are strings",
    ),
    "value is no pair": (
        first({1: vectors(1)}),
        "insert_info[0]: layer 1: expected (positions, vectors) or (positions, vectors, options)",
    ),
    "value is too long": (
        first({1: ([0], vectors(1), {}, {})}),
        "insert_info[0]: layer 1: expected (positions, vectors) or (positions, vectors, options)",
    ),
    "positions is a number": (
        first({1: (0, vectors(1))}),
        "insert_info[0]: layer 1: positions have type int; give a list of token positions",
    ),
    "positions is a string": (
        first({1: ("12", vectors(2))}),
        "insert_info[0]: layer 1: positions have type str; give a list of token positions",
    ),
    "position is a float": (
        first({1: ([0.0], vectors(1))}),
        "insert_info[0]: layer 1: position 0.0 is a float; positions are integers",
    ),
    "position is True": (
        first({1: ([True], vectors(1))}),
        "insert_info[0]: layer 1: position True is a bool; positions are integers",
    ),
    "position after the sample": (
        first({1: ([3], vectors(1))}),
        "insert_info[0]: layer 1: position 3 does not exist; the sample has 3 tokens, "
        "positions 0 to 2 or -3 to -1",
    ),
    "position before the sample": (
        [None, {1: ([-6], vectors(1))}],
        "insert_info[1]: layer 1: position -6 does not exist; the sample has 5 tokens, "
        "positions 0 to 4 or -5 to -1",
    ),
    "position twice": (
        first({1: ([0, 0], vectors(2))}),
        "insert_info[0]: layer 1: position 0 is given twice; give each position once per layer",
    ),
    "position twice, counted from both ends": (
        first({1: ([2, -1], vectors(2))}),
        "insert_info[0]: layer 1: position 2 is given twice; give each position once per layer",
    ),
    "vectors is a list": (
        first({1: ([0], [[[1.0] * D]])}),
        "insert_info[0]: layer 1: vectors have type list; give a torch tensor",
    ),
    "vectors are integers": (
        first({1: ([0], vectors(1).long())}),
        "insert_info[0]: layer 1: vectors have dtype torch.int64; give a floating-point tensor",
    ),
    "one vector for two positions": (
        first({1: ([0, 1], vectors(1))}),
        "insert_info[0]: layer 1: vectors have shape [1, 1, 32]; expected [1, 2, 32]: "
        "2 positions, hidden width 32",
    ),
    "wrong width": (
        first({1: ([0], vectors(1, width=1))}),
        "insert_info[0]: layer 1: vectors have shape [1, 1, 1]; expected [1, 1, 32]: 1 positions, hidden width 32",
    ),
    "no batch axis": (
        first({1: ([0], vectors(1)[0])}),
        "insert_info[0]: layer 1: vectors have shape [1, 32]; expected [1, 1, 32]: 1 positions, hidden width 32",
    ),
    "normalized strength above 1": (
        first({"overlay_strength": 5}),
        "insert_info[0]: overlay_strength 5 is outside 0 to 1, the range for mode 'normalized'",
    ),
    "normalized strength below 0, though negatives are allowed": (
        first({"overlay_strength": -0.5, "allow_negative_strength": True}),
        "insert_info[0]: overlay_strength -0.5 is outside 0 to 1, the range for mode 'normalized'",
    ),
    "addition strength negative": (
        first({"overlay_strength": -1.0, "replacing_mode": "addition"}),
        "insert_info[0]: overlay_strength -1.0 is not above 0; to add nothing or to subtract, "
        "set 'allow_negative_strength': True",
    ),
    "addition strength 0": (
        first({"overlay_strength": 0, "replacing_mode": "addition"}),
        "insert_info[0]: overlay_strength 0 is not above 0; to add nothing or to subtract, "
        "set 'allow_negative_strength': True",
    ),
    "strength is not finite": (
        first({"overlay_strength": float("nan")}),
        "insert_info[0]: overlay_strength is nan; give a finite number",
    ),
    "strength is True": (
        first({"overlay_strength": True}),
        "insert_info[0]: overlay_strength is True; give a finite number",
    ),
    "allowing negatives by a word": (
        first({"allow_negative_strength": "yes"}),
        "insert_info[0]: allow_negative_strength is 'yes'; give True or False",
    ),
    "unknown layer option": (
        first({1: ([0], vectors(1), {"strength": 0.5})}),
        "insert_info[0]: layer 1: unknown option 'strength'; did you mean 'overlay_strength'? "
        "Allowed: overlay_strength, replacing_mode, allow_negative_strength",
    ),
    "layer options are a number": (
        first({1: ([0], vectors(1), 0.5)}),
        "insert_info[0]: layer 1: options have type float; "
        "give a dict of overlay_strength, replacing_mode, allow_negative_strength",
    ),
    "layer strength": (
        first({2: ([0], vectors(1), {"overlay_strength": 2})}),
        "insert_info[0]: layer 2: overlay_strength 2 is outside 0 to 1, the range for mode 'normalized'",
    ),
    "layer mode that does not suit the sample's strength": (
        first({2: ([0], vectors(1), {"replacing_mode": "normalized"}), "replacing_mode": "addition",
               "overlay_strength": 3}),
        "insert_info[0]: layer 2: overlay_strength 3 is outside 0 to 1, the range for mode 'normalized'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_spec_is_refused_with_its_whole_message(name):
    insert_info, message = BAD[name]
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        plan(insert_info)


def test_negative_positions_are_refused_where_the_end_moves():
    message = "insert_info[0]: layer 1: position -1 counts from the end, which moves with past_key_values; count from 0"
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        plan(first({1: ([-1], vectors(1))}), allow_negative_positions=False)


def test_the_cause_of_an_error_is_not_a_chain_of_errors():
    with pytest.raises(SpecError) as raised:
        plan(first({1: ([9], vectors(1))}))
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_notes_of_the_caller_are_let_through():
    edits = plan(first({"retrieve_layer": 3, "note": object(), "": 1, "-": 2, "--1": 3})).edits
    assert edits == {}


def test_samples_without_an_edit_make_no_edit():
    assert plan([None, {}]).edits == {}
    assert plan([{1: ([], vectors(0))}, None]).edits == {}


def test_edits_of_the_whole_batch_are_gathered_by_layer_in_ascending_order():
    edits = plan(
        [
            {3: ([0], vectors(1)), 1: ([2, 0], vectors(2) * 2)},
            {1: ([-1], vectors(1) * 3), "overlay_strength": 0.25},
        ]
    ).edits
    assert list(edits) == [1, 3]
    assert edits[1].samples.tolist() == [0, 0, 1]
    assert edits[1].positions.tolist() == [2, 0, 4]
    assert edits[1].vectors[:, 0].tolist() == [2, 2, 3]
    assert edits[1].vectors.shape == (3, D)
    assert edits[1].keep.tolist() == [[0], [0], [0.75]]
    assert edits[1].add.tolist() == [[1], [1], [0.25]]


def test_a_layer_overrides_mode_and_strength_of_its_sample():
    info = {
        0: ([0], vectors(1)),
        1: ([0], vectors(1), {"overlay_strength": 0.5}),
        2: (
            [0],
            vectors(1),
            {"replacing_mode": "addition", "overlay_strength": -2, "allow_negative_strength": True},
        ),
        "overlay_strength": 0.25,
    }
    edits = plan(first(info)).edits
    assert [float(edits[layer].keep) for layer in range(3)] == [0.75, 0.5, 1]
    assert [float(edits[layer].add) for layer in range(3)] == [0.25, 0.5, -2]


def test_negative_strengths_are_allowed_on_demand():
    info = {1: ([0], vectors(1)), "replacing_mode": "addition", "overlay_strength": -1}
    assert float(plan(first({**info, "allow_negative_strength": True})).edits[1].add) == -1


@pytest.mark.parametrize("strength", [0, 1, 0.0, 1.0, Fraction(1, 2), np.float32(0.5), np.int64(1)])
def test_the_ends_of_the_range_and_any_kind_of_real_number_are_strengths(strength):
    edit = plan(first({1: ([0], vectors(1)), "overlay_strength": strength})).edits[1]
    assert float(edit.add) == float(strength)
    assert float(edit.keep) == 1 - float(strength)


@pytest.mark.parametrize("positions", [[0, 2], (0, -1), range(0, 3, 2), torch.tensor([0, 2]), np.array([0, -1])])
def test_positions_come_as_any_sequence_of_integers(positions):
    assert plan(first({np.int64(1): (positions, vectors(2))})).edits[1].positions.tolist() == [0, 2]


def test_mixing_leaves_the_vectors_dtype_to_the_model():
    edit = plan([{1: ([0], vectors(1).double())}, {1: ([0], vectors(1).bfloat16())}]).edits[1]
    assert edit.vectors.dtype == torch.float64


def test_positions_reach_from_minus_the_count_to_one_before_it():
    edit = plan(first({1: ([-3, 2], vectors(2))})).edits[1]
    assert edit.positions.tolist() == [0, 2]
