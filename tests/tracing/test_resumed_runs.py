"""Runs of traces that are stopped, damaged, changed or resumed."""

import json
from pathlib import Path

import pytest

from interpret.facts import filter
from interpret.storage import run as storage_run
from interpret.tracing import runs
from reference.commands import fact_rows, run, run_killed
from reference.damage import DAMAGES, OUT_OF_MEMORY, cpu_too_large
from reference.trace_runs import arguments, file_of, results_of, table_of

SCRIPT = Path(__file__).parents[2] / "scripts" / "trace_facts.py"


def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(model_folder, tmp_path):
    facts = file_of(tmp_path, fact_rows(6))
    argv = arguments(model_folder, facts, tmp_path / "killed")
    run_killed(SCRIPT, *argv[1:])
    assert {row.name for row in table_of(tmp_path / "killed")} == {"known_0", "known_1", "known_2"}
    # As if killed while writing the next fact's grids: one file is incomplete, one is missing.
    grids = tmp_path / "killed" / "grids"
    (grids / "known_3_hidden.npz").write_bytes(b"half")
    (grids / "known_3_attn_severed.npz").unlink()
    assert run(*argv) == 0
    argv[argv.index(str(tmp_path / "killed"))] = str(tmp_path / "whole")
    assert run(*argv) == 0
    killed, whole = results_of(tmp_path / "killed"), results_of(tmp_path / "whole")
    assert len(whole) == 2 + 6 * 3
    assert killed == whole


def test_a_kill_costs_one_mediator_and_the_files_end_the_same(model_folder, tmp_path, capsys, monkeypatch):
    facts, real, traced = file_of(tmp_path, fact_rows(2)), runs.trace_fact, []

    def interrupted(model, tokenizer, fact, settings, mediators, *rest):
        if len(traced) in (1, 4):
            traced.append("interrupted")
            raise KeyboardInterrupt
        traced.append((fact.name, *mediators))
        return real(model, tokenizer, fact, settings, mediators, *rest)

    assert run(*arguments(model_folder, facts, tmp_path / "whole")) == 0
    monkeypatch.setattr(runs, "trace_fact", interrupted)
    argv = arguments(model_folder, facts, tmp_path / "killed")
    assert run(*argv) == 130
    assert "stopped after 0 of 2 facts and 1 mediator of the next; the same" in capsys.readouterr().err
    assert (tmp_path / "killed" / "unfinished.jsonl").exists()
    assert run(*argv) == 130
    assert "stopped after 1 of 2 facts; the same" in capsys.readouterr().err
    assert run(*argv) == 0
    names = ["hidden", "attn_severed", "mlp_severed"]
    first, second = ([(fact, name) for name in names] for fact in ("known_0", "known_1"))
    assert traced == [first[0], "interrupted", *first[1:], "interrupted", *second]
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
    assert not (tmp_path / "killed" / "unfinished.jsonl").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_grid_of_a_finished_run_is_noticed_and_made_again(model_folder, tmp_path, capsys, damage):
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(3)), tmp_path / "run", "--mediator", "hidden")
    assert run(*argv) == 0
    whole = results_of(tmp_path / "run")
    damage(tmp_path / "run" / "grids" / "known_1_hidden.npz")
    capsys.readouterr()
    assert run(*argv) == 0
    said = capsys.readouterr().err
    assert "files of 1 finished facts are missing or changed, and are made again, such as of 'known_1'" in said
    assert results_of(tmp_path / "run") == whole
    assert run(*argv) == 0
    assert "made again" not in capsys.readouterr().err


def test_a_damaged_grid_of_a_fact_that_does_not_fit_any_more_is_told(model_folder, tmp_path, capsys, monkeypatch):
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(2)), tmp_path / "run", "--mediator", "hidden")
    assert run(*argv) == 0
    whole = results_of(tmp_path / "run")
    (tmp_path / "run" / "grids" / "known_0_hidden.npz").unlink()
    monkeypatch.setattr(runs, "trace_fact", cpu_too_large)
    assert run(*argv) == 0
    told = "the files of 'known_0' are not made again: not traced: the fact does not fit in memory"
    assert told in capsys.readouterr().err
    monkeypatch.undo()
    assert run(*argv) == 0
    assert results_of(tmp_path / "run") == whole


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
@pytest.mark.parametrize("where", ["trace", "filter"])
def test_a_fact_that_does_not_fit_in_memory_is_dropped_with_its_reason(
    model_folder, tmp_path, capsys, monkeypatch, where, too_large
):
    facts, real, written = fact_rows(3), runs.trace_fact, filter.write_after
    longest = max(len(row["prompt"].format(row["subject"])) for row in facts)
    large = [row["known_id"] for row in facts if len(row["prompt"].format(row["subject"])) == longest]

    def traced(model, tokenizer, fact, *args):
        return too_large() if len(fact.prompt) == longest else real(model, tokenizer, fact, *args)

    def answered(model, prompts, new_tokens):
        most = max(map(len, prompts))
        return too_large() if len(prompts) > 1 or most == max_ids else written(model, prompts, new_tokens)

    from interpret.models.opening import load

    _, tokenizer = load(str(model_folder), device="cpu")
    max_ids = max(len(tokenizer(row["prompt"].format(row["subject"])).input_ids) for row in facts)
    if where == "trace":
        monkeypatch.setattr(runs, "trace_fact", traced)
    else:
        monkeypatch.setattr(filter, "write_after", answered)
    argv = arguments(model_folder, file_of(tmp_path, facts), tmp_path / "run", "--mediator", "hidden")
    assert run(*argv) == 3
    reason = "not traced: the fact does not fit in memory: shorten it, use a smaller dtype, or use another device"
    dropped = json.loads((tmp_path / "run" / "manifest.json").read_text())["dropped"]
    assert dropped == {f"known_{known_id}": reason for known_id in large}
    assert 0 < len(large) < 3
    assert reason in capsys.readouterr().err.replace("\n", " ")


def test_grids_are_written_before_the_rows(model_folder, opened, tmp_path, monkeypatch):
    seen = []
    real = storage_run.append_durably

    def append(path, text):
        if path.name == "table.csv" and b"known_" in text:
            seen.append(sorted(path.name for path in (path.parent / "grids").iterdir()))
        real(path, text)

    monkeypatch.setattr(storage_run, "append_durably", append)
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(2)), tmp_path / "run", "--mediator", "hidden")
    assert run(*argv) == 0
    assert seen == [["known_0_hidden.npz"], ["known_0_hidden.npz", "known_1_hidden.npz"]]


def test_a_changed_window_is_refused_and_nothing_is_mixed(model_folder, tmp_path, capsys):
    facts = file_of(tmp_path, fact_rows(1))
    argv = arguments(model_folder, facts, tmp_path / "run", "--mediator", "mlp_window")
    assert run(*argv) == 0
    before = results_of(tmp_path / "run")
    assert run(*argv, "--window", 4) == 2
    message = capsys.readouterr().err
    assert "contains another run:" in message
    assert "window: 3 in the folder, 4 now" in message
    assert results_of(tmp_path / "run") == before


def test_changed_facts_are_refused(model_folder, tmp_path, capsys):
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(2)), tmp_path / "run", "--limit", 1)
    assert run(*argv) == 0
    file_of(tmp_path, fact_rows(2, attribute="Rome"))
    assert run(*argv) == 2
    assert "facts_sha256: " in capsys.readouterr().err


def test_a_higher_limit_resumes_the_run(model_folder, tmp_path, capsys):
    facts = file_of(tmp_path, [{"prompt": "no subject"}, *fact_rows(3)])
    argv = arguments(model_folder, facts, tmp_path / "grown")
    assert run(*argv, "--limit", 1) == 3
    assert len({row.name for row in table_of(tmp_path / "grown")}) == 1
    assert run(*argv) == 3
    assert "2 of 4 facts are already done" in capsys.readouterr().err
    assert run(*arguments(model_folder, facts, tmp_path / "whole")) == 3
    assert results_of(tmp_path / "grown") == results_of(tmp_path / "whole")


def test_a_finished_run_is_shown_again_without_work(model_folder, tmp_path, capsys, monkeypatch):
    argv = arguments(model_folder, file_of(tmp_path, fact_rows(2)), tmp_path / "run")
    assert run(*argv) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(runs, "sized_for", None)
    assert run(*argv) == 0
    again = capsys.readouterr()
    assert again.out == first
    assert "2 of 2 facts are already done" in again.err


def test_an_interrupted_run_reports_what_is_done(model_folder, tmp_path, capsys, monkeypatch):
    real = runs.trace_fact

    def interrupted(model, tokenizer, fact, *rest):
        if fact.name == "known_2":
            raise KeyboardInterrupt
        return real(model, tokenizer, fact, *rest)

    monkeypatch.setattr(runs, "trace_fact", interrupted)
    assert run(*arguments(model_folder, file_of(tmp_path, fact_rows()), tmp_path / "run")) == 130
    assert "stopped after 2 of 4 facts; the same command resumes the run" in capsys.readouterr().err
