"""The loop that fills a run folder: what it shows, and what it leaves when it is interrupted."""

import pytest

import interpret
from interpret.storage.run_folder import read_run
from interpret.tracing import runs
from interpret.tracing.inputs import TraceSettings
from interpret.work.loop import Work, fill_folder
from reference.commands import fact_rows, json_file, run
from reference.small_runs import Row, rows_of

WORK = Work("Counting", "counted", "numbers")
UNITS = ["a", "b", "c"]


def counting(stop_at=None):
    def steps(run):
        for unit in run.pending:
            if unit == stop_at:
                raise KeyboardInterrupt
            run.write(unit, rows_of(unit))
            yield unit

    return steps


def fill(folder, steps, **more):
    return fill_folder(WORK, folder, Row, steps, units=UNITS, identity={"n": 1}, circumstances={}, **more)


def test_it_shows_a_bar_on_stderr_and_what_was_done_before(tmp_path, capsys):
    assert fill(tmp_path / "run", counting()).units == UNITS
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Counting" in shown.err
    assert "3/3" in shown.err
    fill(tmp_path / "run", counting())
    assert capsys.readouterr().err == "3 of 3 numbers are already done\n"


def test_without_progress_it_shows_nothing(tmp_path, capsys):
    for _ in range(2):
        fill(tmp_path / "run", counting(), progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [True, False])
def test_interrupted_it_says_what_is_safe_and_lets_the_interrupt_go_on(progress, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path / "run", counting("c"), progress=progress)
    said = capsys.readouterr().err
    assert said.count("stopped after 2 of 3 numbers; the same command resumes the run") == 1
    assert read_run(tmp_path / "run").units == ["a", "b"]
    assert read_run(tmp_path / "run").manifest["status"] == "incomplete"
    assert fill(tmp_path / "run", counting(), progress=progress).manifest["status"] == "complete"


@pytest.mark.parametrize(("count", "words"), [(1, "1 digit"), (3, "3 digits")])
def test_the_parts_of_an_unfinished_unit_are_told(tmp_path, capsys, count, words):
    def steps(run):
        run.write("a", rows_of("a"))
        yield "a"
        run.parts.keep({("b", str(number)): number for number in range(count)})
        raise KeyboardInterrupt

    work = Work("Counting", "counted", "numbers", "digits")
    with pytest.raises(KeyboardInterrupt):
        fill_folder(work, tmp_path, Row, steps, units=UNITS, identity={"n": 1}, circumstances={})
    assert f"stopped after 1 of 3 numbers and {words} of the next; the same" in capsys.readouterr().err
    fill_folder(work, tmp_path, Row, counting(), units=UNITS, identity={"n": 1}, circumstances={})
    assert f"1 of 3 numbers and {words} of the next are already done\n" in capsys.readouterr().err


def test_an_interrupted_trace_from_python_is_resumed(model_folder, opened, tmp_path, capsys, monkeypatch):
    facts = json_file(tmp_path / "facts.json", fact_rows(3))
    real, done = runs.trace_fact, []

    def interrupted(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    options = {"settings": TraceSettings(samples=1), "mediators": ["hidden"], "only_known": False}
    whole = interpret.tracing.run(*opened, facts, tmp_path / "whole", **options, progress=False)
    monkeypatch.setattr(runs, "trace_fact", interrupted)
    with pytest.raises(KeyboardInterrupt):
        interpret.tracing.run(*opened, facts, tmp_path / "run", **options)
    assert "stopped after 2 of 3 facts" in capsys.readouterr().err
    words = ["trace", "--facts", facts, "--samples", "1", "--mediator", "hidden", "--no-filter", "--device", "cpu"]
    assert run(*words, "--model", model_folder, "--output", tmp_path / "run") == 130
    assert "stopped after 2 of 3 facts; the same command resumes the run" in capsys.readouterr().err
    monkeypatch.setattr(runs, "trace_fact", real)
    again = interpret.tracing.run(*opened, facts, tmp_path / "run", **options, progress=False)
    assert again.records() == whole.records()


def test_a_command_that_is_interrupted_before_its_run_exits_130(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("interpret.models.opening.load", interrupted)
    assert run("check", "demo") == 130
