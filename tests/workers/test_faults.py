"""Workers, machines and drivers that die at a certain moment of a run on a cluster of two machines."""

import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import torch

from interpret.models.opening import load
from interpret.storage.run_folder import read_run
from reference.commands import run as run_here
from reference.workers import Gates, Machines, gone, offspring, results, until

pytestmark = pytest.mark.cluster
MIXED = ["plain", "wait", "plain", "plain", "wait", *["plain"] * 7]


def on(machines: Machines, workers: int = 2) -> list[object]:
    """The options for workers on a cluster."""
    return ["--workers", workers, "--cluster", machines.address]


def whole_run(gates: Gates) -> dict[str, bytes]:
    """The files of the same run in one process; it can be made once all prompts may go on."""
    gates.go()
    assert run_here(*gates.command(output=gates.folder / "whole")) in (0, 3)
    return results(gates.folder / "whole")


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_killed_worker_costs_nothing_but_time(deaths, gates, two_machines):
    gates.examples(*MIXED)
    gates.start(*on(two_machines))
    for nth in range(1, deaths + 1):
        gates.kill_worker_at("wait_1", nth)
    until(lambda: len(gates.workers_at("wait_1")) > deaths)
    gates.go()
    assert gates.ended().count("died and is started again") == deaths
    assert results(gates.run) == whole_run(gates)


def test_a_worker_that_is_killed_while_it_opens_the_model_is_started_again(gates, gate_file, two_machines):
    hold = gate_file.with_name("hold")
    for told in gate_file.parent.glob("loading *"):
        told.unlink()
    hold.touch()
    gates.examples(*["plain"] * 4)
    gates.start(*on(two_machines))
    first, *_ = until(lambda: list(gate_file.parent.glob("loading *")))
    os.kill(int(first.name.split()[1]), signal.SIGKILL)
    until(lambda: "died and is started again" in gates.said)
    hold.unlink()
    gates.ended()
    assert results(gates.run) == whole_run(gates)


def test_the_death_of_a_machine_costs_the_units_at_work_there(gates, two_machines):
    gates.examples(*MIXED)
    gates.start(*on(two_machines))
    until(lambda: gates.workers_at("wait_1") and gates.workers_at("wait_2"))
    two_machines.kill(two_machines.added[-1])
    until(lambda: "died and is started again" in gates.said)
    gates.go()
    gates.ended()
    assert results(gates.run) == whole_run(gates)


def test_a_killed_driver_leaves_no_worker_and_a_run_that_one_process_finishes(gates, two_machines):
    gates.examples(*MIXED)
    driver = gates.start(*on(two_machines))
    (at_work,) = until(lambda: gates.workers_at("wait_2"))
    until(lambda: read_run(gates.run).units == ["plain_1"] if (gates.run / "manifest.json").exists() else False)
    workers = [psutil.Process(pid) for pid in {at_work, *gates.workers_at("wait_1")}]
    driver.kill()
    driver.wait()
    gone(workers)
    gates.go()
    assert run_here(*gates.command()) == 0
    assert results(gates.run) == whole_run(gates)


def test_ctrl_c_ends_the_workers_of_this_machine_and_keeps_what_is_written(gates):
    gates.examples(*MIXED)
    driver = gates.start("--workers", 2)
    until(lambda: gates.workers_at("wait_1") and gates.workers_at("wait_2"))
    until(lambda: read_run(gates.run).units == ["plain_1"])
    started = offspring(driver.pid)
    assert {*gates.workers_at("wait_1"), *gates.workers_at("wait_2")} <= {process.pid for process in started}
    os.killpg(driver.pid, signal.SIGINT)
    assert "stopped after 1 of 12 prompts; the same command resumes the run" in gates.ended(130)
    gone(started)
    gates.go()
    assert run_here(*gates.command()) == 0
    assert results(gates.run) == whole_run(gates)


def test_what_kills_its_worker_and_what_does_not_fit_in_memory_is_dropped(gates, two_machines):
    gates.examples("plain", "kill", "plain", "memory", *["plain"] * 8)
    gates.start(*on(two_machines))
    said = gates.ended(3)
    assert "kill_1: not probed: the worker died 3 times while it was done" in said
    assert "memory_1: not probed: a prompt of" in said
    dropped = read_run(gates.run).dropped
    assert list(dropped) == ["kill_1", "memory_1"]
    assert len(gates.workers_at("kill_1")) == 3
    assert list(read_run(gates.run).to_frame()["name"]) == [f"plain_{number}" for number in range(1, 11)]


def test_an_error_stops_the_run_after_the_units_before_it(gates, two_machines):
    gates.examples("wait", "plain", "raise", "plain")
    gates.start(*on(two_machines))
    until(lambda: gates.workers_at("raise_1"))
    gates.go()
    assert "KeyError: 'on cue' (gate.py, line" in gates.ended(2)
    assert read_run(gates.run).units == ["wait_1", "plain_1"]
    assert read_run(gates.run).manifest["status"] == "incomplete"


def test_fewer_places_than_workers_are_told_and_used(gates, two_machines):
    gates.examples(*MIXED)
    gates.start(*on(two_machines, 3), "--start-timeout", "15")
    until(lambda: "2 of 3 workers are ready after 15 s; the run goes on with these" in gates.said)
    gates.go()
    gates.ended()
    assert results(gates.run) == whole_run(gates)


def test_a_second_driver_of_a_run_is_refused(gates, two_machines):
    gates.examples(*MIXED)
    gates.start(*on(two_machines))
    until(lambda: gates.workers_at("wait_1"))
    gates.start(*on(two_machines))
    assert "is being written by another driver of the cluster" in gates.ended(2)
    gates.go()
    assert gates.drivers[0].wait(timeout=120) == 0
    assert results(gates.run) == whole_run(gates)


def test_a_model_that_no_worker_can_open_is_told_as_in_one_process(gates, two_machines, tmp_path):
    gates.examples("plain")
    gates.model = tmp_path / "nothing"
    gates.start(*on(two_machines))
    said = gates.ended(2)
    assert f"there is no folder '{tmp_path / 'nothing'}'" in said.replace(" /", "/").replace("' ", "'")
    assert not gates.run.exists()


@pytest.fixture
def one_machine(two_machines: Machines) -> Machines:
    """The cluster with only its first machine, so that a second worker comes when a machine is added."""
    two_machines.kill(two_machines.added[-1])
    return two_machines


def second_worker_is_refused(gates: Gates, machines: Machines, change, why: str, **machine) -> None:
    """Change something after the first worker has come, add a machine for a second, and see the run end without it."""
    gates.examples(*MIXED)
    gates.start(*on(machines))
    until(lambda: gates.workers_at("wait_1"))
    change()
    added = machines.add(**machine)
    try:
        until(lambda: why in gates.said)
        gates.go()
        gates.ended()
    finally:
        machines.kill(added)
    pids = {pid for unit in read_run(gates.run).units for pid in gates.workers_at(unit)}
    assert len(pids) == 1


def test_a_worker_with_other_weights_is_refused(gates, one_machine, tmp_path):
    other, link = tmp_path / "other", tmp_path / "model"
    shutil.copytree(gates.model, other)
    model, _ = load(str(other), device="cpu")
    with torch.no_grad():
        model.get_input_embeddings().weight[0, 0] += 1
    model.save_pretrained(other)
    link.symlink_to(gates.model)
    gates.model = link

    def change():
        link.unlink()
        link.symlink_to(other)

    second_worker_is_refused(gates, one_machine, change, "is refused: its weights is")


def test_a_worker_with_another_extension_file_is_refused(gates, one_machine, tmp_path):
    gates.extension = Path(shutil.copy(gates.extension, tmp_path))
    second_worker_is_refused(
        gates,
        one_machine,
        lambda: gates.extension.write_text(gates.extension.read_text() + "# another version\n"),
        "its imports is {'gate.py':",
    )


def test_a_worker_with_another_version_is_refused(gates, one_machine, tmp_path):
    other = tmp_path / "packages" / "numpy-99.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.0\n")
    path = {"env_vars": {"PYTHONPATH": f"{other.parent}:{os.environ['PYTHONPATH']}"}}
    second_worker_is_refused(gates, one_machine, lambda: None, "its numpy is '99.0', not", **path)
