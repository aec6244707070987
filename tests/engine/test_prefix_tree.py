"""Prefix trees: every text is in exactly one tree, and running a tree gives the results of full passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interpret.engine.prefix_tree import groves, read_tree
from interpret.engine.recording import record_run
from interpret.engine.trunk import trunk_of
from reference.kinds import KINDS
from reference.overlay import reference_forward
from reference.tiny import hooks_on, shallow_model, tiny_model

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=12)


def path_of(tree, node):
    path = []
    while node >= 0:
        path.append(tree.ids[node])
        node = tree.parents[node]
    return path[::-1]


@given(TEXTS, st.integers(1, 20))
def test_every_text_is_in_one_tree_and_every_beginning_once(texts, largest):
    made = list(groves(texts, largest))
    assert sorted(number for grove in made for number in grove.places) == list(range(len(texts)))
    for grove in made:
        tree = grove.tree
        beginnings = [tuple(path_of(tree, node)) for node in range(len(tree.ids))]
        assert len(set(beginnings)) == len(beginnings)
        assert tree.depths == [len(beginning) - 1 for beginning in beginnings]
        for number, places in grove.places.items():
            assert [list(beginnings[place]) for place in places] == [
                texts[number][: length + 1] for length in range(len(texts[number]))
            ]
        assert len(tree.ids) <= largest or len({tuple(texts[number]) for number in grove.places}) == 1
        assert set(beginnings) == {
            tuple(texts[number][:length]) for number in grove.places for length in range(1, len(texts[number]) + 1)
        }


@given(TEXTS.filter(lambda texts: any(texts)), st.integers(0, 4), st.none() | st.integers(1, 4))
def test_a_token_sees_the_context_and_its_ancestors(texts, n_before, window):
    (grove,) = groves(texts, 10**6)
    tree = grove.tree
    mask = tree.mask(n_before, window)
    assert mask.shape == (len(tree.ids), n_before + len(tree.ids))
    for node in range(len(tree.ids)):
        ancestors, one = {node}, node
        while tree.parents[one] >= 0:
            one = tree.parents[one]
            ancestors.add(one)
        column = n_before + tree.depths[node]
        for other in range(n_before + len(tree.ids)):
            at = other if other < n_before else n_before + tree.depths[other - n_before]
            seen = other < n_before or other - n_before in ancestors
            seen = seen and (window is None or column - at <= window)
            assert mask[node, other] == (0 if seen else float("-inf"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_read_in_a_tree_is_what_full_passes_read(kind):
    model = tiny_model(kind)
    context, texts = [5, 3, 9], [[7, 8, 9], [7, 8, 2, 4], [7], [6, 8, 9], []]
    trunk = trunk_of(model, 8)
    run = record_run(trunk.layers, trunk.enter(trunk.embed(torch.tensor([context]))), ())
    (grove,) = groves(texts)
    logits = trunk.logits(read_tree(trunk, grove.tree, run.past))
    assert len(grove.tree.ids) == 8
    for number, places in grove.places.items():
        full = reference_forward(model, context + texts[number], None, len(context)).logits
        for depth, place in enumerate(places):
            assert torch.allclose(logits[place], full[len(context) + depth], atol=1e-4)
    assert hooks_on(model) == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_a_tree_through_one_layer_is_what_full_passes_read(kind):
    model, context, texts = shallow_model(kind, 1), [5, 3], [[7, 8], [7, 9, 2]]
    trunk = trunk_of(model, 6)
    run = record_run(trunk.layers, trunk.enter(trunk.embed(torch.tensor([context]))), ())
    (grove,) = groves(texts)
    logits = trunk.logits(read_tree(trunk, grove.tree, run.past))
    for number, places in grove.places.items():
        full = model(torch.tensor([context + texts[number]])).logits[0]
        torch.testing.assert_close(logits[list(places)], full[len(context) :], rtol=0, atol=1e-4)
