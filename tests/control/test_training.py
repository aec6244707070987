"""Control: one MLP is trained like plain training, towards a target state or by rewards."""

import copy

import pytest
import torch
from torch import nn

from interpret.anatomy import anatomy_of
from interpret.control.training import (
    RewardStep,
    alignment,
    reward_loss,
    word_scorer,
)
from reference.control import reference_control, state_before_final_norm
from reference.controlled import IDS, TARGET, assert_same, praise, reinforced, snapshot, supervised
from reference.kinds import D, L
from reference.tiny import tiny_model

# --------------------------------------------------------------------------------------- the training is right


@pytest.mark.parametrize("layer", [1, L])
def test_supervised_control_is_plain_training_of_the_mlp(family_model, layer):
    targets = torch.randn(2, D, generator=torch.Generator().manual_seed(1))
    losses, weights, _ = reference_control(
        family_model, IDS, layer, [1, 4], lambda x: (x - targets).pow(2).sum() / (2 * D), steps=5, lr=1e-2
    )
    with supervised(family_model, layer=layer, target=targets, steps=5, lr=1e-2) as got:
        assert got == pytest.approx(losses, rel=1e-4)
        for name, tensor in family_model.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-4)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_reinforcement_control_is_plain_training_of_the_mlp(family_model, sign):
    def loss_of(x):
        fixed = x.detach()
        return -(sign * (x * fixed).sum(-1) / fixed.norm(dim=-1) ** 2).sum() / 2

    losses, weights, _ = reference_control(family_model, IDS, 2, [1, 4], loss_of, steps=5, lr=1e-3)
    with reinforced(family_model, scorer=lambda text: sign, steps=5, lr=1e-3):
        for name, tensor in family_model.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=2e-4)
    assert losses == pytest.approx([-sign] * 6)


def test_the_first_gradient_is_the_one_by_hand(gpt2, monkeypatch):
    """dLoss/dW of the last linear layer is a^T g: its input times the gradient of the state it adds to."""
    kept = []
    step = torch.optim.Adam.step

    def keep(self, *args, **kwargs):
        kept.append([parameter.grad.clone() for parameter in self.param_groups[0]["params"]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", keep)
    mlp, inputs = anatomy_of(gpt2).layers[1].mlp, []
    handle = mlp.c_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0][0]))
    state = state_before_final_norm(gpt2, IDS, 2)[[1, 4]].detach()  # [P, D]
    handle.remove()
    with supervised(gpt2, steps=1):
        pass
    by_hand = {"supervised": 2 * (state - TARGET) / (2 * D)}
    with reinforced(gpt2, steps=1, scorer=lambda text: -1.0):
        pass
    by_hand["reinforced"] = 0.5 * state / state.pow(2).sum(-1, keepdim=True)
    names = [name for name, _ in mlp.named_parameters()]
    for gradients, wanted in zip(kept, by_hand.values(), strict=True):
        got = dict(zip(names, gradients, strict=True))
        activations = inputs[0][[1, 4]].detach()  # [P, inner]
        torch.testing.assert_close(got["c_proj.weight"], activations.T @ wanted, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(got["c_proj.bias"], wanted.sum(0), rtol=1e-4, atol=1e-7)


def test_the_states_trained_are_the_states_the_model_then_has(family_model):
    """The first and the last loss match those of a pass of the model itself, not of a recorded state."""

    def mse():
        with torch.no_grad():
            return (state_before_final_norm(family_model, IDS, 2)[[1, 4]] - TARGET).pow(2).mean().item()

    untouched = mse()
    with supervised(family_model) as losses:
        assert len(losses) == 11
        assert losses[0] == pytest.approx(untouched, rel=1e-4)
        assert losses[-1] == pytest.approx(mse(), rel=1e-4)
        assert losses[-1] < losses[0]
        hidden_states = family_model(torch.tensor([IDS]), output_hidden_states=True).hidden_states
        own = (hidden_states[2][0, [1, 4]] - TARGET).pow(2).mean().item()
        assert losses[-1] == pytest.approx(own, rel=1e-4)


def test_a_target_of_its_own_for_each_position(llama):
    targets = torch.stack([TARGET, -TARGET])
    with supervised(llama, positions=[-1, 1], target=targets, steps=40, lr=1e-2) as losses:
        states = state_before_final_norm(llama, IDS, 2)[[4, 1]]
    assert losses[-1] < 0.05 * losses[0]
    assert (states - targets).norm() < (states - targets.flip(0)).norm()


def test_a_state_that_matches_already_changes_nothing(llama):
    with torch.no_grad():
        target = state_before_final_norm(llama, IDS, 2)[[1, 4]]
    with supervised(llama, target=target) as losses:
        assert losses[0] < 1e-10


def test_negative_positions_count_from_the_end(llama):
    with supervised(llama, positions=[-4, 4]) as by_end, supervised(tiny_model("llama"), positions=[1, -1]) as again:
        assert by_end == again


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_trained_and_restored(gpt2, dtype):
    model = copy.deepcopy(gpt2).to(dtype)
    before = snapshot(model)
    with supervised(model, target=TARGET.double(), steps=20, lr=1e-2) as losses:
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert losses[-1] < 0.2 * losses[0]
        if dtype != torch.float16:  # torch has no float16 softmax on some processors
            got = state_before_final_norm(model, IDS, 2)[[1, 4]].detach()
            wanted = losses[-1]
            assert (got - TARGET).double().pow(2).mean().item() == pytest.approx(wanted, rel=0.2)
    assert_same(before, snapshot(model))


def test_dropout_stays_off_while_training(gpt2):
    for module in gpt2.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    gpt2.train()
    with supervised(gpt2) as first:
        assert gpt2.training
    with supervised(gpt2) as second:
        assert first == second


def test_the_base_model_is_controlled_too(family_model):
    with supervised(family_model.base_model) as base:
        pass
    with supervised(family_model) as whole:
        assert base == whole


# ----------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize(("text", "grows"), [("good", True), ("bad", False)])
def test_reward_raises_alignment_and_punishment_lowers_it(family_model, text, grows):
    with reinforced(family_model, reader=lambda states: [text] * len(states)) as looks:
        assert len(looks) == 11
        assert all(isinstance(look, RewardStep) for look in looks)
    assert looks[0].alignment == pytest.approx([1.0, 1.0])
    assert looks[0].rewards == [1.0 if grows else -1.0] * 2
    assert all((a > 1) == grows and a != 1 for a in looks[-1].alignment)


def test_no_reward_changes_no_bit(llama):
    before = snapshot(llama)
    with reinforced(llama, reader=lambda states: ["neither"] * len(states)) as looks:
        assert_same({**before, "data": {}}, {**snapshot(llama), "data": {}})
    assert looks[-1].alignment == pytest.approx([1.0, 1.0])


def test_training_pauses_while_all_rewards_are_zero(llama):
    """Adam's momentum would otherwise keep changing weights without any reward."""
    texts = iter(["bad"] * 2 + ["neither"] * 8 + ["bad"])
    with reinforced(llama, positions=[2], reader=lambda states: [next(texts)]) as looks:
        moved = [look.alignment[0] for look in looks]
    assert moved[0] > moved[1] > moved[2]
    assert set(moved[2:]) == {moved[2]}


def test_each_state_has_its_own_reward(llama):
    with reinforced(llama, reader=lambda states: ["good", "bad"], steps=20, lr=1e-3) as looks:
        assert looks[0].rewards == [1.0, -1.0]
    assert looks[-1].alignment[0] > 1 > looks[-1].alignment[1]


def test_the_reader_sees_the_states_and_the_weights_of_its_step(llama):
    seen, own = [], []

    def reader(states):
        assert not torch.is_grad_enabled()
        seen.append(states)
        own.append(state_before_final_norm(llama, IDS, 2)[[1, 4]])
        return praise(states)

    with reinforced(llama, reader=reader, steps=3) as looks:
        assert len(seen) == len(looks) == 4
    for states, pass_over_the_prompt in zip(seen, own, strict=True):
        torch.testing.assert_close(states, pass_over_the_prompt, rtol=0, atol=1e-5)
    assert not torch.equal(seen[0], seen[-1])


def test_reward_loss_has_the_gradient_of_its_docstring():
    states = torch.randn(3, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    loss = reward_loss(states, rewards)
    loss.backward()
    assert loss.item() == pytest.approx(0.0)
    x = states.detach()
    torch.testing.assert_close(states.grad, -rewards[:, None] / 3 * x / x.pow(2).sum(-1, keepdim=True))
    torch.testing.assert_close(alignment(2 * x, x), torch.full((3,), 2.0, dtype=torch.float64))


def test_word_scorer_gives_the_three_rewards():
    score = word_scorer(good=["safe", "kind"], bad="gun")
    texts = ["a kind word", "a gun", "nothing", "a safe gun", "gunpowder is unkind"]
    assert [score(text) for text in texts] == [1.0, -1.0, 0.0, 0.0, 0.0]
