"""Killed after any part of a prompt, a run of attributions makes only the other parts, and ends with the same files."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from interpret.attribution import parts, runs
from interpret.attribution.methods import masked_texts
from interpret.attribution.methods.registry import METHODS, register_method
from interpret.prompts.prompts import Prompt
from interpret.storage.parts import StoredParts
from reference.toy_seq2seq import toy_seq2seq

PROMPT = Prompt(
    "a", "The Eiffel Tower is in the city of", raw=True, target="Paris and I love eating pizza in the city of Rome"
)
SITES = ["attn_out.0", "mlp_out.1"]
CASES = {
    "saliency": {},
    "input_x_gradient": {"aggregate": "l2"},
    "integrated_gradients": {"options": {"n_steps": 3}, "steps": ":3"},
    "sequential_integrated_gradients": {"options": {"n_steps": 2}, "steps": ":3"},
    "discretized_integrated_gradients": {"options": {"n_steps": 3}, "steps": ":3"},
    "gradient_shap": {"options": {"n_samples": 3}, "steps": ":3", "aggregate": "mean"},
    "deeplift": {"steps": ":3"},
    "layer_gradient_x_activation": {"layers": SITES},
    "layer_deeplift": {"layers": SITES},
    "layer_integrated_gradients": {"layers": SITES, "options": {"n_steps": 3}, "steps": ":2"},
    "attention": {"steps": ":3"},
    "value_zeroing": {"steps": ":4"},
    "occlusion": {},
    "lime": {"options": {"n_samples": 20}},
    "reagent": {"options": {"n_probes": 2, "max_rounds": 2}, "steps": ":3"},
    "kernel_shap": {"options": {"n_samples": 40}, "steps": ":2"},
}
"""Each built-in method, with options that give several parts."""
OFTEN = ("input_x_gradient", "layer_integrated_gradients", "occlusion", "kernel_shap")
"""The methods that are always killed, whose parts are of different kinds; of the others, a few are drawn."""


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch) -> None:
    """Make parts of two steps, so that a short text has several."""
    monkeypatch.setattr(parts, "STEPS_A_PART", 2)


class Killed(BaseException):
    """Ends the process as far as the code under test can tell."""


@contextmanager
def killed_at(monkeypatch, number, *, after) -> Iterator[None]:
    """Kill at the ``number``-th part: after it is stored, or before."""
    real, seen = StoredParts.keep, []

    def keep(self, values):
        if self.folder is None:  # nothing is stored, as of the many texts of a step of ReAGent
            return
        seen.append(values)
        if len(seen) == number and not after:
            raise Killed
        real(self, values)
        if len(seen) == number:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StoredParts, "keep", keep)
        yield


@contextmanager
def counted(model, monkeypatch) -> Iterator[dict[str, int]]:
    """Count computed parts, rows of masked texts that are parts, and passes of the stack of layers.

    The passes are counted without a hook: a model with hooks is differentiated in another way.
    """
    found = {"parts": 0, "rows": 0, "passes": 0}
    computed, in_parts = parts._computed, masked_texts.in_parts
    whole_texts = []

    def one_part(method, *args):
        whole_texts.append(method.part == "text")
        found["parts"] += not whole_texts[-1]
        return computed(method, *args)

    def pack(step, rows, work):
        found["rows"] += len(rows) * whole_texts[-1]
        return in_parts(step, rows, work)

    stack = type(model.get_decoder() if model.config.is_encoder_decoder else model.base_model)
    forward = stack.forward

    def one_pass(*args, **options):
        found["passes"] += 1
        return forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "forward", one_pass)
        patch.setattr(parts, "_computed", one_part)
        patch.setattr(masked_texts, "in_parts", pack)
        yield found


def results_of(folder):
    files = [folder / "table.csv", folder / "progress.jsonl", *(folder / "attributions").iterdir()]
    return {path.name: path.read_bytes() for path in files}


def stored_in(folder):
    """Return the number of parts on disk."""
    file = folder / "unfinished.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def check_every_kill(model, tokenizer, prompt, tmp_path, monkeypatch, **options):
    """Kill a run at every part, resume it, and compare with an uninterrupted run; return the number of stored parts."""
    options = {"batch_size": 4, "steps": ":10", "progress": False} | options

    def attribute(folder):
        runs.run(model, tokenizer, [prompt], folder, **options)

    attribute(tmp_path / "first")  # afterwards, nothing is checked for the first time any more
    with counted(model, monkeypatch) as all_of_it:
        attribute(tmp_path / "whole")
    whole, number, passes = results_of(tmp_path / "whole"), 0, []
    assert not (tmp_path / "whole" / "unfinished.jsonl").exists()
    while True:
        number += 1
        for after in (False, True):
            folder = tmp_path / f"{number} {after}"
            with killed_at(monkeypatch, number, after=after):
                try:
                    attribute(folder)
                except Killed:
                    pass
                else:
                    return number - 1, passes, all_of_it
            n_stored = stored_in(folder)
            with counted(model, monkeypatch) as rest:
                attribute(folder)
            assert rest["parts"] + rest["rows"] == all_of_it["parts"] + all_of_it["rows"] - n_stored
            assert rest["passes"] < all_of_it["passes"] or not n_stored
            assert results_of(folder) == whole
            assert not (folder / "unfinished.jsonl").exists()
        passes.append(rest["passes"])


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.further) for name in CASES]
)
def test_a_kill_costs_one_part_and_the_files_end_the_same(method, opened, tmp_path, monkeypatch):
    n_stored, passes, _ = check_every_kill(*opened, PROMPT, tmp_path, monkeypatch, method=method, **CASES[method])
    assert n_stored >= 1
    assert passes == sorted(passes, reverse=True)
    assert len(set(passes)) == len(passes), "every stored part saves passes"


def test_every_built_in_method_is_killed():
    assert CASES.keys() == {name for name, method in METHODS.items() if isinstance(method.function, str)}


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_a_kill_costs_one_part_of_a_translation(method, tmp_path, monkeypatch):
    toy = toy_seq2seq("m2m100")
    n_stored, _, _ = check_every_kill(
        toy.model,
        toy.tokenizer,
        Prompt("a", "I love pizza", raw=True, target="hello cheese"),
        tmp_path,
        monkeypatch,
        method=method,
        source_language=toy.source_language,
        target_language=toy.target_language,
        **({"options": {"n_steps": 3}} if method == "integrated_gradients" else {"batch_size": 2}),
    )
    assert n_stored >= 1


def test_the_parts_of_a_users_method_are_steps_unless_it_takes_all(opened, tmp_path, monkeypatch):
    def norms(step):
        return step.value(step.embeddings) * step.embeddings[0].norm(dim=-1)

    def all_norms(steps):
        return [norms(step) / len(steps) for step in steps]

    try:
        register_method(norms, "norms", gradients=False)
        register_method(all_norms, "all_norms", together=True, gradients=False)
        n_parts = {
            method: check_every_kill(*opened, PROMPT, tmp_path / method, monkeypatch, method=method, steps=":4")[0]
            for method in ("norms", "all_norms")
        }
    finally:
        for method in ("norms", "all_norms"):
            METHODS.pop(method, None)
    assert n_parts == {"norms": 3, "all_norms": 0}


def test_scores_that_are_not_finite_are_stored_and_read_back(opened, tmp_path, monkeypatch):
    def broken(step):
        return step.embeddings[0].norm(dim=-1) * (float("nan") if len(step.ids) % 2 else float("inf"))

    try:
        register_method(broken, "broken", gradients=False)
        with killed_at(monkeypatch, 2, after=True), pytest.raises(Killed):
            runs.run(*opened, [PROMPT], tmp_path / "run", method="broken", steps=":3", progress=False)
        resumed = runs.run(*opened, [PROMPT], tmp_path / "run", method="broken", steps=":3", progress=False)
    finally:
        METHODS.pop("broken", None)
    assert resumed.dropped["a"].startswith("not attributed: scores")


def test_another_batch_size_makes_only_the_masked_texts_that_are_not_stored(opened, tmp_path, monkeypatch):
    with killed_at(monkeypatch, 2, after=True), pytest.raises(Killed):
        runs.run(*opened, [PROMPT], tmp_path / "run", method="occlusion", batch_size=3, progress=False)
    with counted(opened[0], monkeypatch) as rest:
        resumed = runs.run(*opened, [PROMPT], tmp_path / "run", method="occlusion", batch_size=2, progress=False)
    whole = runs.run(*opened, [PROMPT], tmp_path / "whole", method="occlusion", batch_size=3, progress=False)
    assert rest["rows"] > 0
    for one, other in zip(resumed.records(), whole.records(), strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
