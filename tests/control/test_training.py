"""Control: one MLP is trained like plain training, and everything is restored afterwards."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from interpret.anatomy import anatomy_of
from interpret.control.training import (
    RewardStep,
    alignment,
    reinforcement_control,
    reward_loss,
    supervised_control,
    word_scorer,
)
from interpret.errors import InputError, UnsupportedModelError
from reference.control import mlp_names, reference_control, state_before_final_norm
from reference.tiny import D, L, hooks_on, tiny_model

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


def unsettle(model):
    """Put a model into a state that is easily lost: mixed flags and modes, gradients of the user's own."""
    model.train()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 > 0)
        parameter.grad = torch.full_like(parameter, 0.5) if index % 2 else None
    anatomy_of(model).layers[0].eval()
    return model


# ------------------------------------------------------------------------------------------------- restoring


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


# ------------------------------------------------------------------------------------------------------ errors


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
