"""Control of hidden states: after the ``with`` block, all weights and modes are as before."""

import pytest
import torch

from interpret.anatomy import anatomy_of
from reference.control import mlp_names
from reference.controlled import BOTH, IDS, TARGET, assert_same, praise, reinforced, snapshot, supervised
from reference.kinds import L


def unsettle(model):
    """Put a model into a state that is easily lost: mixed flags and modes, gradients of the user's own."""
    model.train()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 > 0)
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    anatomy_of(model).layers[0].eval()
    return model


@BOTH
def test_only_the_chosen_mlp_differs_inside_and_nothing_after(family_model, controlled):
    unsettle(family_model)
    before = snapshot(family_model)
    with controlled(family_model, layer=2):
        assert_same(before, snapshot(family_model), but=mlp_names(family_model, 2))
    assert_same(before, snapshot(family_model))


@BOTH
@pytest.mark.parametrize("layer", range(1, L + 1))
def test_each_layer_trains_its_own_mlp(gpt2, controlled, layer):
    before = snapshot(gpt2)
    with controlled(gpt2, layer=layer):
        assert_same(before, snapshot(gpt2), but=mlp_names(gpt2, layer))
    assert_same(before, snapshot(gpt2))


@BOTH
def test_a_body_that_raises_leaves_nothing(family_model, controlled):
    unsettle(family_model)
    before = snapshot(family_model)
    with pytest.raises(KeyboardInterrupt), controlled(family_model):
        raise KeyboardInterrupt
    assert_same(before, snapshot(family_model))


@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_reader_that_raises_while_training_leaves_nothing(llama, at):
    unsettle(llama)
    before, calls = snapshot(llama), []

    def reader(states):
        calls.append(states)
        if len(calls) == at:
            raise RuntimeError("out of words")
        return praise(states)

    with pytest.raises(RuntimeError, match="out of words"), reinforced(llama, reader=reader, steps=3):
        pytest.fail("the body must not run")
    assert_same(before, snapshot(llama))


def test_weights_the_body_changes_in_place_are_restored_too(llama):
    before = snapshot(llama)
    with supervised(llama), torch.no_grad():
        for name in mlp_names(llama, 2):
            llama.get_parameter(name).mul_(7)
    assert_same(before, snapshot(llama))


def test_a_body_may_train_and_backpropagate(llama):
    with supervised(llama):
        llama(torch.tensor([IDS])).logits.sum().backward()
        assert all(llama.get_parameter(name).grad is not None for name in mlp_names(llama, 2))
    llama.zero_grad()


def test_controls_nest_and_the_inner_one_starts_from_the_outer(llama):
    before = snapshot(llama)
    with supervised(llama) as outer:
        inside = snapshot(llama)
        with supervised(llama, steps=2) as inner:
            assert inner[0] == pytest.approx(outer[-1], rel=1e-5)
        assert_same(inside, snapshot(llama))
    assert_same(before, snapshot(llama))


def test_an_inner_control_of_another_layer_keeps_the_outer_one(llama):
    before = snapshot(llama)
    with supervised(llama, layer=1), reinforced(llama, layer=3):
        assert_same(before, snapshot(llama), but=mlp_names(llama, 1) | mlp_names(llama, 3))
    assert_same(before, snapshot(llama))


def test_a_control_works_where_gradients_are_off(llama):
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            target = TARGET.clone()
            with supervised(llama, target=target) as losses:
                assert not torch.is_grad_enabled()
            with reinforced(llama) as looks:
                assert torch.is_inference_mode_enabled() == (quiet is torch.inference_mode)
        assert losses[-1] < losses[0]
        assert looks[-1].alignment[0] > 1
    with supervised(llama, target=target) as losses:  # a target made in inference mode, used outside
        assert losses[-1] < losses[0]
