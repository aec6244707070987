"""Both controls with usual arguments, and what a control must restore."""

import pytest
import torch

from interpret.control.training import (
    reinforcement_control,
    supervised_control,
    word_scorer,
)
from reference.kinds import D
from reference.tiny import hooks_on

IDS = [5, 6, 7, 8, 9]

TARGET = torch.linspace(-1, 1, D)


def supervised(model, **changes):
    return supervised_control(model, IDS, **{"layer": 2, "positions": [1, -1], "target": TARGET, **changes})


def praise(states):
    return ["good"] * len(states)


def reinforced(model, **changes):
    scorer = word_scorer(good="good", bad="bad")
    defaults = {"layer": 2, "positions": [1, -1], "reader": praise, "scorer": scorer}
    return reinforcement_control(model, IDS, **{**defaults, **changes})


BOTH = pytest.mark.parametrize("controlled", [supervised, reinforced])


def snapshot(model):
    """Everything about a model that a control must restore."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "data": {name: parameter.data_ptr() for name, parameter in model.named_parameters()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "grads": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": hooks_on(model),
    }


def assert_same(before, after, *, but=()):
    """Assert that two snapshots agree bit by bit, except the weights of ``but``, which must all differ."""
    assert before["weights"].keys() == after["weights"].keys()
    changed = {name for name, t in before["weights"].items() if not torch.equal(t, after["weights"][name])}
    assert changed == set(but)
    for part in ("flags", "modes", "hooks") if but else ("data", "flags", "modes", "hooks"):
        assert before[part] == after[part], part
    for name, grad in before["grads"].items():
        other = after["grads"][name]
        assert (grad is None and other is None) or torch.equal(grad, other), name
