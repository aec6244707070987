"""Runs that sweeps share are recorded once, and give the numbers of sweeps that record their own."""

import pytest
import torch

from interpret.errors import UnsupportedModelError
from interpret.sweep import Cell, Pin, first_order, kept_runs, run_sweep
from interpret.sweep.kept_runs import KeptRuns
from reference.overlay import decoder_layers
from reference.sweeps import CLOSE, MODELS, P, runs

CELLS = [
    Cell("resid_post", 1, 1, 2),
    Cell("resid_post", 2, 0, 1, None, (Pin("attn_out", "later"),)),
    Cell("mlp_out", 1, 0, 1),
    Cell("heads", 2, 1, 2, 3),
]


@pytest.fixture
def recordings(monkeypatch):
    """The shapes of the runs that are recorded."""
    shapes, record = [], kept_runs.record_run

    def record_run(layers, start, points):
        shapes.append(tuple(start.shape[:2]))
        return record(layers, start, points)

    monkeypatch.setattr(kept_runs, "record_run", record_run)
    return shapes


def found(model, base, donor):
    swept = run_sweep(model, base, donor, CELLS, P)
    return swept.values["p"], first_order(model, base, donor, CELLS, P["p"]).effects


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_shared_runs_are_recorded_once_and_change_no_number(kind, recordings):
    model, (base, donor) = MODELS[kind], runs(MODELS[kind])
    own = found(model, base, donor)
    assert len(recordings) == 4
    recordings.clear()
    with KeptRuns().shared():
        for _ in range(2):
            torch.testing.assert_close(found(model, base, donor), own, **CLOSE)
    assert sorted(recordings) == sorted(tuple(run.shape[:2]) for run in (base, donor))


def test_the_runs_of_neurons_are_recorded_for_them_alone(recordings):
    model, (base, donor) = MODELS["llama"], runs(MODELS["llama"])
    cells = [Cell("neurons", 1, 1, 2, 5)]
    own = run_sweep(model, base, donor, cells, P).values["p"]
    recordings.clear()
    with KeptRuns().shared():
        found(model, base, donor)
        torch.testing.assert_close(run_sweep(model, base, donor, cells, P).values["p"], own, **CLOSE)
    assert len(recordings) == 3  # the donor again, whose neurons are restored


def test_other_texts_and_other_models_have_runs_of_their_own(recordings):
    model, (base, donor) = MODELS["llama"], runs(MODELS["llama"])
    others = [(model, *runs(model, 1)), (MODELS["mistral"], base, donor)]
    own = [found(*other) for other in others]
    with KeptRuns().shared():
        found(model, base, donor)
        for other, expected in zip(others, own, strict=True):
            torch.testing.assert_close(found(*other), expected, **CLOSE)


def test_cleared_runs_and_those_outside_of_the_block_are_recorded_again(recordings):
    model, (base, donor) = MODELS["llama"], runs(MODELS["llama"])
    kept = KeptRuns()
    with kept.shared():
        found(model, base, donor)
        kept.clear()
        found(model, base, donor)
    assert len(recordings) == 4
    found(model, base, donor)
    assert len(recordings) == 8


def test_runs_of_inference_mode_can_be_estimated_afterwards():
    model, (base, donor) = MODELS["llama"], runs(MODELS["llama"])
    own = found(model, base, donor)
    with KeptRuns().shared():
        with torch.inference_mode():
            run_sweep(model, base.clone(), donor.clone(), CELLS, P)
        torch.testing.assert_close(found(model, base, donor), own, **CLOSE)


def test_a_shared_run_is_compared_with_the_models_own_also_if_it_was_a_base_first(family_model):
    base, donor = runs(family_model, n_samples=1)
    handle = decoder_layers(family_model)[1].register_forward_hook(
        lambda module, args, output: (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5
    )
    with KeptRuns().shared():
        for pair in ((base, donor), (donor, base), (base, base)):
            with pytest.raises(UnsupportedModelError, match="does not compute what other"):
                run_sweep(family_model, *pair, CELLS[:1], P)
    handle.remove()
