"""The profile: nothing is counted twice or lost, bytes match closed forms, and no hook is left."""

import re
import time
from inspect import signature

import pandas as pd
import pytest
import torch

from interpret.anatomy import anatomy_of
from interpret.bench import profiling
from interpret.bench.experiment import Experiment
from interpret.bench.profiling import profile, profiled
from interpret.errors import InputError
from reference.devices import DEVICES
from reference.kinds import D, L, V
from reference.tiny import hooks_on

ROWS = [[5, 6, 7, 8, 9], [20, 30]]
B, T, F = 2, 5, 48
FLOAT = 4


class Clock:
    """A clock on which time passes only when a test says so, and 1 ns at each reading."""

    def __init__(self):
        self.now = 0

    def read(self):
        self.now += 1
        return self.now

    def pass_by(self, milliseconds):
        self.now += milliseconds * 10**6


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of the profiler: the time that tiny parts really take depends on what else is running."""
    made = Clock()
    monkeypatch.setattr(profiling, "_clock", lambda model: made.read)
    return made


def layers(table):
    return table[table.part == "layer"]


@pytest.mark.gpu
@pytest.mark.parametrize("device", DEVICES)
def test_rows_add_up_to_the_whole(family_model, device):
    table = profile(family_model.to(device), None, ROWS, repeats=2)
    family_model.cpu()
    assert table.part.tolist() == ["embeddings", *["layer"] * L, "head", "rest"]
    assert table.layer.tolist() == [-1, *range(L), -1, -1]
    assert (table.ms > 0).all()
    assert table.share.sum() == pytest.approx(1, abs=1e-12)
    assert table.share.tolist() == pytest.approx((table.ms / table.ms.sum()).tolist())
    everything = sum(each.numel() * each.element_size() for each in family_model.parameters())
    assert table.parameter_bytes.sum() == everything


def test_components_add_up_to_their_layer(family_model):
    whole = profile(family_model, None, ROWS, repeats=1)
    parts = profile(family_model, None, ROWS, granularity="component", repeats=1)
    assert layers(parts).component.tolist() == ["attention", "mlp", "rest"] * L
    assert (layers(parts).ms > 0).all()
    assert parts.share.sum() == pytest.approx(1, abs=1e-12)
    for column in ("parameter_bytes", "activation_bytes"):
        joined = layers(parts).groupby("layer")[column].sum()
        assert joined.tolist() == layers(whole)[column].tolist(), column
        assert parts[column].sum() == whole[column].sum()
    names = anatomy_of(family_model).family
    for index, block in enumerate(anatomy_of(family_model).layers):
        held = parts[parts.layer == index].set_index("component").parameter_bytes
        mlp = {block.get_submodule(path) for path in (names.mlp_first, names.mlp_last)}
        assert held["attention"] == size(block.get_submodule(names.attention))
        assert held["mlp"] == sum(map(size, mlp))
        assert held["rest"] == size(block) - held["attention"] - held["mlp"] > 0


def size(module):
    return sum(each.numel() * each.element_size() for each in module.parameters())


def test_bytes_written_are_those_of_the_formulas(llama):
    table = profile(llama, None, [[1, 2, 3, 4, 5]] * B, granularity="component", repeats=1)
    # Gate, its activation, up, and their product; then down.
    mlp = FLOAT * B * T * (4 * F + D)
    assert table[table.component == "mlp"].activation_bytes.tolist() == [mlp] * L
    assert table[table.part == "embeddings"].activation_bytes.item() == FLOAT * B * T * D
    head = table[table.part == "head"].activation_bytes.item()
    assert head == FLOAT * B * T * V
    # Two sums of the halves, and in each norm: squares, their means, plus epsilon, inverse roots, the scaled and the
    # weighted states.
    rest = FLOAT * B * T * (2 * D + 2 * (3 * D + 3))
    assert table[table.component == "rest"].activation_bytes.tolist() == [rest] * L


def test_views_are_not_counted_and_changes_in_place_are(llama):
    block = anatomy_of(llama).layers[1].mlp
    plain = profile(llama, None, ROWS, repeats=1).activation_bytes
    handles = [block.register_forward_hook(lambda module, args, output: output.view(-1).view_as(output))]
    assert profile(llama, None, ROWS, repeats=1).activation_bytes.equals(plain)
    handles.append(block.register_forward_hook(lambda module, args, output: output.mul_(1.0)))
    changed = profile(llama, None, ROWS, repeats=1).activation_bytes
    for handle in handles:
        handle.remove()
    assert (changed - plain).tolist() == [0, 0, FLOAT * B * T * D, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("part", "find"),
    [
        (("layer", 2, "attention"), lambda anatomy: anatomy.layers[2].get_submodule(anatomy.family.attention)),
        (("layer", 1, "mlp"), lambda anatomy: anatomy.layers[1].get_submodule(anatomy.family.parts.activation)),
        (("layer", 3, "rest"), lambda anatomy: anatomy.layers[3].get_submodule(anatomy.family.parts.attention_norm)),
        (("rest", -1, ""), lambda anatomy: anatomy.trunk.get_submodule(anatomy.family.final[0])),
        (("embeddings", -1, ""), lambda anatomy: anatomy.trunk.get_input_embeddings()),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_time_counts_for_the_part_in_which_it_passes(kind, part, find, request, clock):
    model = request.getfixturevalue(kind)
    slow = find(anatomy_of(model))
    handle = slow.register_forward_pre_hook(lambda module, args: clock.pass_by(50))
    table = profile(model, None, ROWS, granularity="component", repeats=3)
    handle.remove()
    found = table.loc[table.ms.idxmax()]
    assert (found.part, found.layer, found.component) == part
    assert 50 <= found.ms < 51


def test_the_sum_is_the_time_a_pass_takes(gpt2):
    spent = []

    def run():
        start = time.perf_counter()
        with torch.no_grad():
            gpt2(torch.tensor(ROWS[:1]))
        time.sleep(0.02)  # outside the model
        spent.append(time.perf_counter() - start - 0.02)

    table = profiled(gpt2, run, repeats=1).profile
    assert 0 < table.ms.sum() <= spent[-1] * 1e3


def test_medians_leave_out_the_first_and_odd_passes(gpt2, monkeypatch):
    ticks, times = iter(range(10**6)), [0]

    def clock(model):
        # Every part of the calls 0 to 3 takes 1000, 5, 7 and 900 ns.
        def now():
            next(ticks)
            times[0] += [1000, 5, 7, 900][calls[0] - 1]
            return times[0]

        return now

    def run():
        calls[0] += 1
        gpt2(torch.tensor(ROWS[:1]))
        return calls[0]

    calls = [0]
    monkeypatch.setattr(profiling, "_clock", clock)
    outcome = profiled(gpt2, run, repeats=3)
    assert outcome.result == 4
    assert outcome.profile[outcome.profile.part == "head"].ms.item() == pytest.approx(7e-6)
    assert outcome.profile[outcome.profile.part == "embeddings"].ms.item() == pytest.approx(2 * 7e-6)


def test_every_gpu_is_synchronised(gpt2, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    devices = [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")]
    model = type("Model", (), {"parameters": lambda self: [type("P", (), {"device": each}) for each in devices]})()
    assert profiling._clock(model)() > 0
    assert {device.index for device in waited} == {0, 1}


def test_shared_parameters_count_once(gpt2):
    assert gpt2.lm_head.weight is gpt2.transformer.wte.weight
    table = profile(gpt2, None, ROWS, repeats=1).set_index("part").parameter_bytes
    assert table["embeddings"] == FLOAT * D * (V + 64)
    assert table["head"] == 0


def test_a_base_model_has_no_head(gpt2):
    table = profile(gpt2.transformer, None, ROWS, repeats=1)
    assert table.part.tolist() == ["embeddings", *["layer"] * L, "rest"]


def test_hooks_are_gone_also_after_an_error(family_model, monkeypatch):
    before = hooks_on(family_model)
    layer = anatomy_of(family_model).layers[2]
    monkeypatch.setattr(layer, "forward", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        profile(family_model, None, ROWS)
    assert hooks_on(family_model) == before


def test_a_pass_that_breaks_off_and_is_caught_does_not_confuse_the_next(gpt2, clock):
    def run():
        handle = gpt2.transformer.h[1].mlp.act.register_forward_hook(lambda *event: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gpt2(torch.tensor(ROWS[:1]))
        handle.remove()
        clock.pass_by(500)
        gpt2(torch.tensor(ROWS[:1]))

    table = profiled(gpt2, run, granularity="component", repeats=1).profile
    assert 0 < table.ms.sum() < 1
    assert len(table) == 3 + 3 * L


def test_a_function_of_an_experiment_is_measured(gpt2, tmp_path):
    exp, calls = Experiment(gpt2, None, folder=tmp_path), []

    @exp.profile(granularity="component", repeats=2)
    def write(n):
        """Write some tokens."""
        calls.append(n)
        return gpt2.generate(torch.tensor([[5, 6]]), max_new_tokens=n, do_sample=False)

    outcome = write(3)
    assert calls == [3, 3, 3]
    assert outcome.result.shape == (1, 5)
    assert len(outcome.profile) == 3 + 3 * L
    # Current releases of transformers apply the head only to the last of the prompt's two tokens.
    of_prompt = 1 if "logits_to_keep" in signature(gpt2.forward).parameters else 2
    head = outcome.profile.set_index("part").activation_bytes["head"]
    assert head == FLOAT * V * (of_prompt + 2), "tokens of the prompt, and two more passes of a token"
    assert write.__doc__ == "Write some tokens."

    @exp.profile
    def plain():
        return gpt2(torch.tensor([[5]]))

    assert isinstance(plain().profile, pd.DataFrame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "layers"}, "unknown granularity 'layers'; did you mean 'layer'? Allowed: layer, component"),
        ({"repeats": 0}, "repeats is 0; expected at least 1"),
    ],
)
def test_wrong_options_are_refused(gpt2, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        profile(gpt2, None, ROWS, **options)


def test_a_call_that_does_not_run_the_model_is_refused(gpt2):
    with pytest.raises(InputError, match="nothing to profile: the call ran no forward pass of this model"):
        profiled(gpt2, lambda: None)
