"""The run folders of workers on a cluster are those of one process, to the byte."""

import errno
import json

import pytest

import interpret
from interpret.errors import InputError, RunError
from interpret.factpages import FactSettings
from interpret.probing.prompt_runs import run_heads, run_lens, run_logits
from interpret.storage import run as storage_run
from interpret.tracing.inputs import TraceSettings
from interpret.workers import Workers
from reference.commands import fact_rows, json_file
from reference.workers import results

pytestmark = pytest.mark.cluster
PROMPTS = [
    {"prompt": f"{text} {number}", "category": "raw", "raw": True, "target": "Paris", "foil": "Rome"}
    for number in range(3)
    for text in ("The Eiffel Tower is in", "I love pizza with")
]
RUNS = {
    "selfie": lambda *of, **to: interpret.selfie.run(*of, new_tokens=3, prompt_output_tokens=2, layers=[0, 2], **to),
    "attribute": lambda *of, **to: interpret.attribution.run(*of, steps=(0, 1), step_scores=["entropy"], **to),
    "lens": lambda *of, **to: run_lens(*of, tokens="0,-1", top=2, **to),
    "logits": run_logits,
    "heads": run_heads,
    "trace": lambda *of, **to: interpret.tracing.run(
        *of, settings=TraceSettings(samples=2, window=3), mediators=["hidden", "mlp_window"], only_known=False, **to
    ),
    "trace known": lambda *of, **to: interpret.tracing.run(*of, settings=TraceSettings(samples=2), **to),
    "trace metrics": lambda *of, **to: interpret.tracing.run(
        *of, metrics=["logit", "rank"], mediators=["hidden", "heads"], only_known=False, **to
    ),
    "trace screened": lambda *of, **to: interpret.tracing.run(*of, method="screened", only_known=False, **to),
    "locate": lambda *of, **to: interpret.locating.run(*of, only_known=False, **to),
    "fact": lambda *of, **to: interpret.factpages.run(*of, settings=FactSettings(samples=2, cells=("last,1",)), **to),
}


@pytest.fixture(scope="module", autouse=True)
def connected(head):
    """This process as a driver of the cluster, so that it need not connect for every run."""
    import ray

    if not head.added:
        head.add()
    ray.init(head.address, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def given(tmp_path):
    """A prompt file and a fact file, the latter with an unreadable row."""
    prompts = json_file(tmp_path / "prompts.json", PROMPTS)
    facts = json_file(tmp_path / "facts.json", [{"prompt": "no subject"}, *fact_rows(6, foil="Rome")])
    return {"prompts": prompts, "facts": facts}


def of(case, given):
    return given["facts" if case.startswith(("trace", "locate", "fact")) else "prompts"]


@pytest.mark.parametrize("case", RUNS)
def test_two_workers_leave_the_folder_of_one_process(case, opened, given, tmp_path):
    made = [
        RUNS[case](*opened, of(case, given), output=tmp_path / name, workers=workers, progress=False)
        for name, workers in (("one", 1), ("two", 2))
    ]
    assert results(tmp_path / "two") == results(tmp_path / "one")
    one, two = (run.manifest for run in made)
    assert two["identity"] == one["identity"]
    assert two["counts"] == one["counts"]
    workers = two["circumstances"]["workers"]
    assert sum(of_one["calls"] for of_one in workers.values()) >= one["counts"]["kept"] / 8


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_run_that_was_begun_by_some_is_finished_by_others(order, opened, given, tmp_path):
    for workers, limit in zip(order, (2, None), strict=True):
        RUNS["trace"](*opened, given["facts"], output=tmp_path / "run", limit=limit, workers=workers, progress=False)
    RUNS["trace"](*opened, given["facts"], output=tmp_path / "one", progress=False)
    assert results(tmp_path / "run") == results(tmp_path / "one")


def test_a_full_disk_stops_the_run_and_loses_nothing(opened, given, tmp_path, monkeypatch):
    real = storage_run.append_durably

    def full(path, data):
        if path.name == "table.csv" and path.stat().st_size > 2000:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(storage_run, "append_durably", full)
    options = {"output": tmp_path / "run", "progress": False}
    with pytest.raises(RunError, match="No space left on device.*the same command resumes"):
        run_lens(*opened, given["prompts"], workers=2, **options)
    monkeypatch.undo()
    run_lens(*opened, given["prompts"], workers=2, **options)
    run_lens(*opened, given["prompts"], tmp_path / "one", progress=False)
    assert results(tmp_path / "run") == results(tmp_path / "one")


def test_what_concerns_the_whole_run_is_raised_as_in_one_process(opened, given, tmp_path):
    with pytest.raises(InputError, match="layer 40"):
        interpret.selfie.run(*opened, given["prompts"], tmp_path / "run", layers=[40], workers=2, progress=False)
    assert not (tmp_path / "run").exists()
    run_lens(*opened, given["prompts"], tmp_path / "run", progress=False)
    with pytest.raises(RunError, match="contains another run"):
        run_lens(*opened, given["prompts"], tmp_path / "run", top=3, workers=Workers(2), progress=False)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "complete"
