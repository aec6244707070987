"""What goes to workers and comes back: small, picklable, and the same whoever does it; where they have a place."""

import pickle
import sys

import pytest

import interpret
from interpret.errors import InputError, ModelError
from interpret.factpages import FactSettings
from interpret.models import Opening
from interpret.probing.neuron_runs import run_neurons
from interpret.probing.prompt_runs import run_lens
from interpret.selfie import readings, rows
from interpret.tracing import runs as tracing_runs
from interpret.workers import Workers, runs
from interpret.workers.in_process import InProcess
from interpret.workers.jobs import Finished
from interpret.workers.places import Place, place_of
from interpret.workers.worker import on_device
from reference.commands import fact_rows, json_file, run
from reference.house import IMPORTS

LARGEST = 64 * 1024
"""Bytes of a task; weights would be more."""
PROMPTS = [{"prompt": f"The Eiffel Tower is in {n}", "raw": True, "target": "Paris", "foil": "Rome"} for n in range(4)]


class Sent(InProcess):
    """An executor that lets everything take the way to a worker and back."""

    def __init__(self, job, model, tokenizer, say):
        super().__init__(self.sent(job), model, tokenizer, say)

    def sent(self, what, largest=LARGEST):
        data = pickle.dumps(what)
        assert len(data) < largest
        return pickle.loads(data)

    def settled(self):
        return self.sent(super().settled())

    def ask(self, questions):
        return (self.sent(answer) for answer in super().ask(map(self.sent, questions)))

    def do(self, tasks, parts_for):
        for steps in super().do(map(self.sent, tasks), parts_for):
            assert all(step is None or isinstance(step, Finished) for step in steps)
            yield self.sent(steps, 10 * LARGEST)


RUNS = {
    "selfie": lambda *of, **to: interpret.selfie.run(*of, new_tokens=2, layers=[0], prompt_output_tokens=1, **to),
    "attribute": lambda *of, **to: interpret.attribution.run(*of, steps=(0, 1), **to),
    "lens": run_lens,
    "trace": lambda *of, **to: interpret.tracing.run(*of, mediators=["hidden"], only_known=False, **to),
    "locate": lambda *of, **to: interpret.locating.run(*of, only_known=False, **to),
    "fact": lambda *of, **to: interpret.factpages.run(*of, settings=FactSettings(samples=2, cells=("last,1",)), **to),
}


@pytest.mark.parametrize("case", RUNS)
def test_all_that_is_sent_is_small_and_gives_the_same_rows(case, opened, tmp_path, monkeypatch):
    facts = json_file(tmp_path / "facts.json", fact_rows(3, foil="Rome"))
    given = facts if case in ("trace", "locate", "fact") else json_file(tmp_path / "prompts.json", PROMPTS)
    RUNS[case](*opened, given, output=tmp_path / "one", progress=False)
    monkeypatch.setattr(runs, "InProcess", Sent)
    RUNS[case](*opened, given, output=tmp_path / "sent", progress=False)
    for name in ("table.csv", "progress.jsonl"):
        assert (tmp_path / "sent" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_without_ray_one_line_says_what_to_install(opened, tmp_path, monkeypatch, capsys, model_folder):
    monkeypatch.setattr("interpret.models.extras.find_spec", lambda name: None)
    prompts = json_file(tmp_path / "prompts.json", PROMPTS)
    with pytest.raises(ModelError, match=r'workers needs ray: pip install "llm-interpret\[cluster\]"'):
        run_lens(*opened, prompts, tmp_path / "run", workers=2, progress=False)
    line = ["probe", "lens", "--examples", prompts, "--model", model_folder, "--output", tmp_path / "run"]
    assert run(*line, "--workers", 2) == 2
    assert "needs ray: pip install" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_one_worker_is_this_process_and_ray_is_not_imported(opened, tmp_path):
    before = "ray" in sys.modules
    made = run_lens(*opened, json_file(tmp_path / "p.json", PROMPTS), tmp_path / "run", workers=1, progress=False)
    assert "workers" not in made.manifest["circumstances"]
    assert ("ray" in sys.modules) == before


def test_a_model_that_was_not_opened_by_load_is_refused(llama, opened, tmp_path):
    with pytest.raises(InputError, match="workers cannot open this model: it was not opened by interpret.load"):
        run_lens(llama, opened[1], json_file(tmp_path / "p.json", PROMPTS), tmp_path / "run", workers=2)


def test_a_description_of_a_model_is_opened_here_for_one_process(model_folder, opened, tmp_path):
    prompts = json_file(tmp_path / "p.json", PROMPTS)
    made = run_lens(Opening(str(model_folder), device="cpu"), None, prompts, tmp_path / "a", progress=False)
    assert made.records() == run_lens(*opened, prompts, tmp_path / "b", progress=False).records()


def test_probe_neurons_takes_no_workers(opened, tmp_path, capsys):
    with pytest.raises(InputError, match="probe neurons runs in one process without workers"):
        run_neurons(*opened, [("a", "b"), ("c", "d")], tmp_path / "run", workers=2)
    pairs = json_file(tmp_path / "pairs.json", [{"true": "a b", "false": "a c"}, {"true": "d e", "false": "d f"}])
    assert run("probe", "neurons", "--pairs", pairs, "--workers", 2, "--output", tmp_path / "run") == 2
    assert "probe neurons runs in one process without workers" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "workers is 0"),
        ({"cluster": "ray://head:10001"}, "cluster 'ray://head:10001' is not understood"),
        ({"cluster": "head"}, "give 'auto' on a machine of the cluster, or HOST:PORT"),
        ({"gpus_per_worker": 1.5}, "gpus_per_worker is 1.5; give a whole number, or a fraction below 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker is -1"),
        ({"gpus_per_worker": float("nan")}, "gpus_per_worker is nan"),
        ({"start_timeout": 0}, "start_timeout is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        Workers(**arguments)
    assert message in str(caught.value)


CPU, CUDA = Opening(device="cpu"), Opening()
SERVER, SMALL, HEAD = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 2.0}, {"CPU": 128.0}


@pytest.mark.parametrize(
    ("workers", "opening", "nodes", "place"),
    [
        (Workers(2), CPU, [SMALL], Place(1, 0.0)),
        (Workers(2), CPU, [{"CPU": 8.0}], Place(4, 0.0)),
        (Workers(2), CPU, [{"CPU": 7.0}, {"CPU": 1.0}], Place(3, 0.0)),
        (Workers(5), CPU, [SMALL], Place(1, 0.0)),
        (Workers(8), CUDA, [SERVER], Place(8, 1.0)),
        (Workers(8), CUDA, [HEAD, SERVER], Place(8, 1.0)),
        (Workers(16, gpus_per_worker=0.5), CUDA, [SERVER], Place(4, 0.5)),
        (Workers(4, gpus_per_worker=2), CUDA, [SERVER], Place(16, 2.0)),
        (Workers(8), CPU, [SERVER], Place(8, 0.0)),
        (Workers(2), CUDA, [SMALL], Place(1, 0.0)),
    ],
)
def test_a_place_is_as_large_as_all_workers_have_room_for(workers, opening, nodes, place):
    assert place_of(workers, opening, nodes) == place


def test_a_worker_without_a_gpu_uses_the_cpu_unless_a_device_is_given():
    assert on_device(CUDA, 0).device == "cpu"
    assert on_device(CUDA, 1).device is None
    assert on_device(Opening(device="mps"), 0).device == "mps"


def test_a_worker_cannot_open_a_run_folder():
    writing = {"interpret.storage.run", "interpret.storage.opening", "interpret.work.loop", "interpret.workers.runs"}
    assert not IMPORTS["interpret.workers.worker"] & writing
    assert IMPORTS["interpret.workers.runs"] & writing


def test_sizes_of_batches_are_those_that_were_settled_whoever_does_a_task(opened, tmp_path, monkeypatch):
    sizes, read, batches = iter([2]), readings._read_batch, []
    monkeypatch.setattr(rows, "automatic_batch_size", lambda primed, new_tokens: next(sizes, 7))
    monkeypatch.setattr(readings, "_read_batch", lambda *of: batches.append(len(of[1])) or read(*of))
    monkeypatch.setattr(runs, "InProcess", Sent)
    given = json_file(tmp_path / "prompts.json", PROMPTS)
    interpret.selfie.run(*opened, given, tmp_path / "run", layers=[0, 1], new_tokens=2, progress=False)
    assert max(batches) == 2


def test_the_size_of_the_noise_and_the_memory_of_a_sweep_are_settled_once(opened, tmp_path, monkeypatch):
    asked, traced = [], []
    sized, trace = tracing_runs.sized_for, tracing_runs.trace_fact
    monkeypatch.setattr(tracing_runs, "sized_for", lambda *of: asked.append(1) or sized(*of))
    monkeypatch.setattr(tracing_runs, "trace_fact", lambda *of: traced.append(of[3]) or trace(*of))
    monkeypatch.setattr(runs, "InProcess", Sent)
    facts = json_file(tmp_path / "facts.json", fact_rows(3))
    interpret.tracing.run(*opened, facts, tmp_path / "run", mediators=["hidden"], only_known=False, progress=False)
    assert len(asked) == 1
    assert len(traced) == 3
    assert len({(settings.noise, settings.memory) for settings in traced}) == 1
    assert all(isinstance(settings.noise, float) and settings.memory for settings in traced)
