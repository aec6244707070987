"""Interpretations in run folders: what an interrupt costs, and prompts that do not fit in memory."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch

from interpret import selfie
from interpret.errors import ModelError
from interpret.prompts.prompts import Prompt, load_examples
from interpret.selfie import readings, rows
from interpret.selfie.settings import Settings
from interpret.selfie.sources import plan_sources
from interpret.selfie.templates import interpretation_prompt
from interpret.storage.parts import StoredParts
from interpret.storage.run_folder import read_run
from reference.commands import json_file, run
from reference.damage import OUT_OF_MEMORY

QUICK = {"layers": "1,3", "tokens": "0:4", "new_tokens": 3, "interpretation_prompts": ["repeat", "summarize"]}
KILLED_IN_BATCH = """
import os, signal, sys
from interpret.cli.command_line import main
from interpret.selfie import readings
real, left = readings._read_batch, [int(sys.argv.pop(1))]
def counted(*args):
    left[0] -= 1
    return real(*args) if left[0] >= 0 else os.kill(os.getpid(), signal.SIGKILL)
readings._read_batch = counted
main(sys.argv[1:])
"""


def prompts_of(tmp_path, *texts):
    entries = [{"category": "any", "prompt": text, "raw": True} for text in texts]
    return json_file(tmp_path / "prompts.json", {"examples": entries})


def arguments(model_folder, examples, output, *more):
    paths = ["--model", model_folder, "--examples", examples, "--output", output, "--device", "cpu"]
    quick = ["--layers", "1,3", "--tokens", "0:4", "--new-tokens", "3", "--prompt-output-tokens", "2"]
    return [str(word) for word in ["selfie", *paths, *quick, *more]]


def files_of(folder):
    names = sorted(path.name for path in folder.iterdir())
    return names, (folder / "table.csv").read_bytes(), (folder / "progress.jsonl").read_bytes()


@pytest.fixture
def interrupted_after(monkeypatch):
    """Raise a KeyboardInterrupt in the batch after the first ``allowed``; returns the sizes of the batches."""
    real, sizes = readings._read_batch, []

    def arm(allowed):
        sizes.clear()

        def counted(primed, batch, settings):
            if len(sizes) == allowed:
                raise KeyboardInterrupt
            sizes.append(len(batch))
            return real(primed, batch, settings)

        monkeypatch.setattr(readings, "_read_batch", counted)
        return sizes

    return arm


@pytest.mark.parametrize(
    ("texts", "size"),
    [(["The Eiffel Tower is in"], 3), (["I love eating pizza", "The Eiffel Tower is in", "Japan is the capital"], 10)],
)
def test_an_interrupt_costs_one_batch_and_the_files_end_the_same(
    opened, tmp_path, capsys, interrupted_after, texts, size
):
    """Three prompts of 8 states fill batches of 10 and 6, and one of 8, for each of two interpretation prompts."""
    examples = prompts_of(tmp_path, *texts)

    def batches(folder, allowed):
        sizes = interrupted_after(allowed)
        with suppress(KeyboardInterrupt):
            selfie.run(*opened, examples, tmp_path / folder, batch_size=size, **QUICK)
        return list(sizes)

    sizes, whole = batches("whole", 10**6), files_of(tmp_path / "whole")
    assert len(sizes) == 6
    capsys.readouterr()
    for allowed in range(6):
        done = batches(str(allowed), allowed)
        assert len(done) == allowed
        said = capsys.readouterr().err
        if len(texts) == 1:
            words = f" and {sum(done)} interpretations of the next" if done else ""
            assert f"stopped after 0 of 1 prompts{words}; the same" in said
        assert sum(batches(str(allowed), 10**6)) == sum(sizes) - sum(done)
        assert files_of(tmp_path / str(allowed)) == whole


def test_another_batch_size_goes_on_where_the_first_stopped(opened, tmp_path, interrupted_after):
    examples, options = prompts_of(tmp_path, "The Eiffel Tower is in"), QUICK | {"interpretation_prompts": "repeat"}
    interrupted_after(2)
    with pytest.raises(KeyboardInterrupt):
        selfie.run(*opened, examples, tmp_path / "run", batch_size=2, **options)
    sizes = interrupted_after(10**6)
    ended = selfie.run(*opened, examples, tmp_path / "run", batch_size=3, **options).records()
    assert sizes == [3, 1]
    whole = selfie.run(*opened, examples, tmp_path / "whole", batch_size=20, **options).records()
    assert [row.interpretation for row in ended] == [row.interpretation for row in whole]
    for one, other in zip(ended, whole, strict=True):
        torch.testing.assert_close(torch.tensor(one.interpretation_prob), torch.tensor(other.interpretation_prob))


def test_a_killed_process_keeps_its_batches(model_folder, tmp_path, interrupted_after):
    examples = prompts_of(tmp_path, "The Eiffel Tower is in")
    argv = arguments(model_folder, examples, tmp_path / "killed", "--batch-size", "3")
    process = subprocess.run([sys.executable, "-c", KILLED_IN_BATCH, "2", *argv], capture_output=True, env=os.environ)
    assert process.returncode == -signal.SIGKILL
    sizes = interrupted_after(10**6)
    assert run(*argv) == 0
    assert sizes == [2]
    assert run(*arguments(model_folder, examples, tmp_path / "whole", "--batch-size", "3")) == 0
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("step", ["_states", "write_after"])
def test_a_prompt_that_does_not_fit_in_memory_is_dropped_with_its_reason(
    model_folder, opened, tmp_path, monkeypatch, step
):
    texts, real = ["I love", "The Eiffel Tower is in the city of Paris", "Japan"], getattr(rows, step)
    examples, most = prompts_of(tmp_path, *texts), len(opened[1](texts[1]).input_ids)

    def refusing(model, *args):
        lengths = [len(args[0].tokenised.ids)] if step == "_states" else list(map(len, args[0]))
        if most in lengths:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, *args)

    monkeypatch.setattr(rows, step, refusing)
    argv = arguments(model_folder, examples, tmp_path / "run", "--tokens", "-1")
    assert run(*argv) == 3
    found = read_run(tmp_path / "run")
    too_large = "does not fit in memory: shorten it, use a smaller dtype, or use another device"
    assert found.dropped == {"any_2": f"not interpreted: a prompt of {most} tokens {too_large}"}
    assert [row.name for row in found.records()] == ["any_1"] * 3 + ["any_3"] * 3
    assert run(*argv) == 3
    chosen = plan_sources(*opened, load_examples(examples), layers="1,3", tokens="-1")
    template = interpretation_prompt(opened[1], "repeat")
    with pytest.raises(ModelError, match=f"^prompt any_2: a prompt of {most} tokens {too_large}$"):
        list(rows.interpretations(*opened, chosen, [template], Settings(new_tokens=2)))


@pytest.fixture
def refused_state(monkeypatch):
    """Let a batch with one state, (layer 3, token 1), run out of memory; returns the sizes of the batches that fit."""

    def arm(too_large):
        real, sizes = readings._read_batch, []

        def refusing(primed, batch, settings):
            if any((state.layer, state.token) == (3, 1) for state in batch):
                too_large()
            sizes.append(len(batch))
            return real(primed, batch, settings)

        monkeypatch.setattr(readings, "_read_batch", refusing)
        return sizes

    return arm


@pytest.mark.parametrize("too_large", OUT_OF_MEMORY)
def test_an_interpretation_that_does_not_fit_in_memory_is_dropped_and_the_others_are_made(
    model_folder, opened, tmp_path, capsys, refused_state, too_large
):
    examples = prompts_of(tmp_path, "The Eiffel Tower is in", "I love eating pizza")
    argv = arguments(model_folder, examples, tmp_path / "run", "--batch-size", "4", "--interpretation-prompt", "repeat")
    assert run(*arguments(model_folder, examples, tmp_path / "all", *argv[argv.index("--batch-size") :])) == 0
    refused_state(too_large)
    capsys.readouterr()
    assert run(*argv) == 3
    said = capsys.readouterr()
    found, whole = read_run(tmp_path / "run"), read_run(tmp_path / "all").records()
    part = "repeat, layer 3, token 1"
    assert {unit: list(parts) for unit, parts in found.dropped_parts.items()} == {"any_1": [part], "any_2": [part]}
    reason = found.dropped_parts["any_1"][part]
    assert reason.startswith("not interpreted: an interpretation of ")
    assert reason.endswith(
        " tokens and up to 3 new ones does not fit in memory: shorten it, use a smaller dtype, or use another device"
    )
    assert found.dropped == {}
    for one, other in zip(found.records(), whole, strict=True):
        if (one.layer_idx, one.token_idx) == (3, 1):
            assert (one.kind, one.interpretation) == ("failed", [])
        else:
            assert (one.kind, one.interpretation) == (other.kind, other.interpretation)
    assert "2 prompts: 2 interpreted, 0 dropped\n2 interpretations of these dropped (2 not interpreted)" in said.out
    assert f"any_1, {part}: not interpreted" in said.err
    assert run(*argv) == 3
    assert read_run(tmp_path / "run").dropped_parts == found.dropped_parts


def test_a_dropped_interpretation_stays_dropped_when_the_run_is_resumed(opened, tmp_path, refused_state, monkeypatch):
    examples = prompts_of(tmp_path, "The Eiffel Tower is in")
    options = QUICK | {"batch_size": 3, "interpretation_prompts": "repeat"}
    sizes = refused_state(OUT_OF_MEMORY[0])
    whole = selfie.run(*opened, examples, tmp_path / "whole", **options)
    n_parts = 8
    assert sum(sizes) == n_parts - 1
    real, seen = StoredParts.keep, []

    def killed(self, values):
        real(self, values)
        seen.append(values)
        if "too large" in values.values():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoredParts, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            selfie.run(*opened, examples, tmp_path / "run", **options)
    refused_state(OUT_OF_MEMORY[0])
    resumed = selfie.run(*opened, examples, tmp_path / "run", **options)
    assert resumed.dropped_parts == whole.dropped_parts
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_without_a_place_to_record_it_an_interpretation_that_does_not_fit_is_an_error(opened, refused_state):
    refused_state(OUT_OF_MEMORY[1])
    chosen = plan_sources(*opened, [Prompt("a", "I love pizza", raw=True)], layers="3", tokens="1")
    template = interpretation_prompt(opened[1], "repeat")
    with pytest.raises(ModelError, match="^not even a single text fits in memory"):
        list(rows.interpretations(*opened, chosen, [template], Settings(new_tokens=2)))
