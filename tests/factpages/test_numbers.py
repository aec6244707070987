"""The numbers of fact pages are those of the single calls, and those of the commands that the page shows."""

import shlex
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import interpret
from interpret.factpages import FactSettings, fact_page
from interpret.factpages.recipes import recipes
from interpret.factpages.settings import split_cell
from interpret.factpages.stored import stored_facts
from interpret.locating import locate_facts
from interpret.probing import logit_lens
from interpret.prompts.prompts import Prompt
from interpret.records import LensReading, LocationCell, TokenScore, TraceCell, UnitCell
from interpret.selfie import Settings
from interpret.selfie.sources import source_of_pairs
from interpret.storage.run_folder import read_table
from interpret.sweep import kept_runs
from interpret.tracing import TraceSettings, knockout, trace_mediators, trace_units
from reference.commands import run
from reference.fact_pages import FACTS, KNOWN, SETTINGS

close = partial(pytest.approx, rel=1e-4, abs=1e-8)
"""Closer than 1e-6, because the numbers of a tiny model are small."""


def grid(cells, name):
    shape = (cells[-1].token_idx + 1, cells[-1].layer_idx + 1)
    values = [getattr(cell, name) for cell in cells]
    return np.array([np.nan if value is None else value for value in values], dtype=float).reshape(shape)


@pytest.fixture(scope="module", params=["screened", "exact", "relp"])
def page(request, opened_knowing):
    """A fact with a foil, alone."""
    model, tokenizer = opened_knowing
    settings = replace(SETTINGS, method=request.param)
    return fact_page(model, tokenizer, *_texts(FACTS[1]), foil="Rome", settings=settings, progress=False)


def _texts(fact):
    return fact.prompt, fact.subject, fact.attribute


def test_traces_are_those_of_trace_mediators(page, opened_knowing):
    method = page.manifest["identity"]["method"]
    own = trace_mediators(*opened_knowing, *_texts(FACTS[1]), settings=TraceSettings(samples=3), method=method)
    for name, result in own.items():
        assert grid(page.cells, name) == close(result.indirect_effects)
        assert [getattr(cell, f"{name}_method") == "exact" for cell in page.cells] == result.exact.ravel().tolist()
    assert page.cells[0].clean == close(own["hidden"].high)
    assert page.cells[0].corrupted == close(own["hidden"].low)


def test_attributions_are_those_of_locate_and_attribute(page, opened_knowing):
    model, tokenizer = opened_knowing
    rows = [row for row in locate_facts(model, tokenizer, [FACTS[1]]) if row.site == "resid_post"]
    assert grid(page.cells, "attribution").ravel() == close([row.score for row in rows])
    prompt, _, attribute = _texts(FACTS[1])
    of_tokens = interpret.attribute(
        model,
        tokenizer,
        prompt,
        f"{prompt} {attribute}",
        contrast_targets=f"{prompt} Rome",
        alignment=[[(0, 0)]],
        attributed_fn="contrast_prob_diff",
        contrast="same_context",
        end=1,
    )
    scores = of_tokens.aggregate().sequences[0].scores
    assert page.details["attribution"]["tokens"] == close(scores[: len(page.details["trace"]["tokens"]), 0])


def test_the_lens_is_read_after_each_layer(page, opened_knowing):
    model, tokenizer = opened_knowing
    cache = interpret.activations.activation_cache(model, tokenizer, [FACTS[1].prompt])
    frame = logit_lens(model, cache, [page.cells[0].answer_id], tokenizer=tokenizer, top=1, positions=None)
    for cell in page.cells:
        here = frame[(frame.position == cell.token_idx) & (frame.layer == cell.layer_idx + 1)]
        (own,) = here[here.token_id == cell.answer_id].itertuples()
        assert (cell.lens_rank, cell.lens_probability) == (own.rank, close(own.probability))
        assert (cell.lens_token_id, cell.lens_token) == tuple(here.iloc[0][["token_id", "token"]])


def test_knockouts_heads_and_neurons_are_those_of_the_single_calls(page, opened_knowing):
    texts = _texts(FACTS[1])
    cut = knockout(*opened_knowing, *texts)
    assert np.array(page.details["knockout"]["probability"]) == close(cut.values["probability"])
    for site in ("heads", "neurons"):
        part = page.details[site]
        own = trace_units(*opened_knowing, *texts, site=site, top=part["top"], settings=TraceSettings(samples=3))
        frame = own.top(len(part["rows"]))
        assert [row["indirect_effect"] for row in part["rows"]] == close(list(frame.indirect_effect))
        for name in ("layer_idx", "unit", "token_idx"):
            assert sorted(row[name] for row in part["rows"]) == sorted(frame[name])


def test_interpretations_are_those_of_the_outputs_of_layers(page, opened_knowing):
    model, tokenizer = opened_knowing
    rows = page.details["interpretations"]["rows"]
    pairs = [(row["layer_idx"], row["token_idx"]) for row in rows if row["kind"] == "interpretation"]
    last = len(page.details["trace"]["tokens"]) - 1
    chosen = {(layer + 1, token) for layer, token in [(0, page.details["trace"]["span"][1] - 1), (1, last)]}
    assert chosen <= set(pairs)
    source = source_of_pairs(model, tokenizer, Prompt("fact_0", FACTS[1].prompt, raw=True), pairs, "resid_pre")
    words = interpret.interpretation_prompt(tokenizer, "summarize")
    own = list(interpret.interpretations(model, tokenizer, [source], [words], Settings(prompt_output_tokens=0)))
    assert [row["interpretation_text"] for row in rows] == [row.interpretation_text for row in own]
    for name in [name for name in rows[-1] if name.startswith("gain_over_")]:
        assert [row[name] for row in rows[1:]] == close([getattr(row, name) for row in own[1:]])


def test_the_runs_that_parts_have_in_common_are_recorded_once(opened_knowing, monkeypatch):
    recorded, record = [], kept_runs.record_run

    def record_run(layers, start, points):
        recorded.append((len(start), "neurons" in points))
        return record(layers, start, points)

    monkeypatch.setattr(kept_runs, "record_run", record_run)
    fact_page(*opened_knowing, *_texts(FACTS[1]), settings=SETTINGS, progress=False)
    clean, corrupted = 1, SETTINGS.samples
    # Neurons need so much memory that clean runs with them are recorded apart: to estimate them, and to run them.
    assert sorted(recorded) == [(clean, False), (clean, True), (clean, True), (corrupted, False)]


def test_the_commands_on_the_page_give_its_numbers(finished, model_folder_knowing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known, *_ = stored_facts(finished)
    steps = {one.title: one.command for one in recipes(known.details, finished.manifest["identity"])}
    for title, command in steps.items():
        more = ["--layers", "1", "--tokens", "last"] if title == "Interpretations" else []
        assert run(*shlex.split(command)[1:], *more, "--device", "cpu", "--output", title) == 0, command
    cells = known.cells
    traced = [row for row in read_table(tmp_path / "Causal tracing", TraceCell) if row.mediator == "hidden"]
    assert [cell.hidden for cell in cells] == close([row.indirect_effect for row in traced])
    located = [row for row in read_table(tmp_path / "Attribution of layers", LocationCell) if row.site == "resid_post"]
    assert [cell.attribution for cell in cells] == close([row.score for row in located])
    tokens = [row.score for row in read_table(tmp_path / "Attribution of tokens", TokenScore)]
    assert known.details["attribution"]["tokens"] == close(tokens)
    lens = read_table(tmp_path / "Logit lens", LensReading)
    # The output of a layer is the input of the next; that of the last layer has the site resid_post.
    followed = {
        (row.token_idx, row.layer_idx - (row.site == "resid_pre")): row.rank
        for row in lens
        if row.continuation == "target"
    }
    assert [cell.lens_rank for cell in cells] == [followed[cell.token_idx, cell.layer_idx] for cell in cells]
    units = read_table(tmp_path / "Heads and neurons" / "units.csv", UnitCell)
    effects = {(row.mediator, row.layer_idx, row.unit, row.token_idx): row.indirect_effect for row in units}
    for site in ("heads", "neurons"):
        for row in known.details[site]["rows"]:
            place = (site, row["layer_idx"], row["unit"], row["token_idx"])
            assert row["indirect_effect"] == close(effects[place])
    cut = read_table(tmp_path / "Knockout", TraceCell)
    last = [row.restored for row in cut if row.token_idx == cells[-1].token_idx]
    assert known.details["knockout"]["probability"][0] == close(last)


def test_the_python_lines_on_the_page_run(finished, opened_knowing):
    model, tokenizer = opened_knowing
    known, foiled, _ = stored_facts(finished)
    for fact in (known, foiled):
        for one in recipes(fact.details, finished.manifest["identity"]):
            code = one.python.replace("{layer}", "1").replace("{token}", "-1")
            exec(code, {"model": model, "tokenizer": tokenizer, "interpret": interpret})  # noqa: S102


def test_a_fact_without_a_foil_is_attributed_by_its_probability(finished):
    known, foiled, _ = stored_facts(finished)
    assert {cell.attributed_fn for cell in known.cells} == {"probability"}
    assert {cell.attributed_fn for cell in foiled.cells} == {"contrast_prob_diff"}
    assert known.details["fact"]["name"] == KNOWN.name


@pytest.mark.parametrize("cell", ["3", "3,4,5", "last,x", "first,2", ""])
def test_a_cell_that_is_not_understood_is_refused(cell):
    with pytest.raises(interpret.InputError, match=r"cell|selector"):
        FactSettings(cells=(cell,))
    assert split_cell("-1, 4") == ("-1", "4")
