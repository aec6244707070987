"""Runs of fact pages: stored in parts, resumed, and drawn again without the model."""

import json
from dataclasses import replace

import pytest

import interpret
from interpret.errors import InputError, RunError, UnsupportedModelError
from interpret.factpages import parts, runs, write_pages
from interpret.factpages.parts import PARTS
from interpret.facts.files import Fact
from interpret.records import FactCell
from interpret.storage.run_folder import read_run, read_table
from reference.commands import fact_rows, json_file, run
from reference.fact_pages import FACTS, HOSTILE, KNOWN, PROMPT, SETTINGS, SUBJECT

QUICK = replace(SETTINGS, samples=1, cells=("last,0",))


def computed(monkeypatch):
    """Return a list that will hold the names of the parts that are computed."""
    names, find = [], parts.found_part

    def found_part(part, *more):
        names.append(part.name)
        return find(part, *more)

    monkeypatch.setattr(runs, "found_part", found_part)
    return names


def test_a_stopped_run_goes_on_after_the_last_part_and_gives_the_same_files(opened_knowing, tmp_path, monkeypatch):
    whole = runs.run(*opened_knowing, FACTS[:2], tmp_path / "whole", settings=QUICK, progress=False)
    names = computed(monkeypatch)
    knockout = parts.knockout

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "knockout", stopped)
    with pytest.raises(KeyboardInterrupt):
        runs.run(*opened_knowing, FACTS[:2], tmp_path / "stopped", settings=QUICK, progress=False)
    assert names == ["answer", "trace", "attribution", "knockout"]
    names.clear()
    monkeypatch.setattr(parts, "knockout", knockout)
    resumed = runs.run(*opened_knowing, FACTS[:2], tmp_path / "stopped", settings=QUICK, progress=False)
    every = [part.name for part in PARTS]
    assert names == [*every[3:], *every]
    for name in ("table.csv", *whole.files):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_there_is_one_row_per_token_and_layer_and_one_file_per_fact(finished):
    assert finished.units == [fact.name for fact in FACTS]
    assert set(finished.files) == {f"facts/{fact.name}.json" for fact in FACTS}
    for fact, rows in zip(FACTS, finished.by_unit(), strict=True):
        places = [(row.token_idx, row.layer_idx) for row in rows]
        assert places == [(token, layer) for token in range(places[-1][0] + 1) for layer in range(4)]
        assert {(row.prompt, row.subject, row.attribute) for row in rows} == {
            (fact.prompt, fact.subject, fact.attribute)
        }


def test_the_model_knows_the_first_fact_only(finished):
    details = [json.loads((finished.folder / name).read_bytes()) for name in finished.files]
    assert [one["answer"]["known"] for one in details] == [True, False, False]
    assert details[0]["answer"]["continuation"].split()[0] == "Paris"


def test_pages_are_drawn_from_the_run_folder_alone(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("interpret.models.opening.load", None)  # no model can be opened
    monkeypatch.chdir(tmp_path)
    assert run("report", finished.folder, "-o", "pages") == 0
    names = {path.relative_to(tmp_path / "pages").as_posix() for path in (tmp_path / "pages").rglob("*.html")}
    assert names == {"index.html", *(f"facts/{fact.name}.html" for fact in FACTS)}
    index = (tmp_path / "pages" / "index.html").read_text(encoding="utf-8")
    assert "1 of 3 facts are known to the model" in index
    assert all(f'href="facts/{fact.name}.html"' in index for fact in FACTS)
    with pytest.raises(InputError, match=r"page.html is one file, and the run has several facts; give a folder"):
        write_pages(finished.folder, "page.html")


def test_a_command_writes_a_page_and_tells_what_the_model_says_instead(model_folder_knowing, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["fact", "--model", model_folder_knowing, "--device", "cpu", "--samples", 1, "--cell", "last,0"]
    texts = ["--prompt", PROMPT, "--subject", SUBJECT, "--target", "Rome"]
    assert run(*line, *texts, "-o", "page.html", "--run", "folder") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "The model does not know this fact: it says “Paris" in page
    (tmp_path / "page.html").unlink()
    assert run("report", "folder") == 0
    assert (tmp_path / "folder.html").read_text(encoding="utf-8") == page


def test_a_file_of_facts_makes_pages_with_an_index_and_goes_on_with_a_higher_limit(
    model_folder_knowing, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    file = json_file(tmp_path / "facts.json", [*fact_rows(2, attribute="Paris"), {"prompt": "no subject"}])
    line = ["fact", "--model", model_folder_knowing, "--device", "cpu", "--samples", 1, "--cell", "last,0"]
    assert run(*line, "--facts", file, "--limit", 1, "-o", "pages") == 3  # the unreadable row is a failure
    assert run(*line, "--facts", file, "-o", "pages") == 3
    assert "2 explained" in capsys.readouterr().out
    assert len([*(tmp_path / "pages" / "facts").iterdir()]) == 2


def test_a_part_that_the_model_does_not_have_is_said_on_the_page(opened_knowing, tmp_path, monkeypatch):
    def unsupported(*_, **__):
        raise UnsupportedModelError("its layers cannot be run <part> by part")

    monkeypatch.setattr(parts, "trace_units", unsupported)
    found = runs.run(*opened_knowing, [KNOWN], tmp_path / "run", settings=QUICK, progress=False)
    assert set(found.dropped_parts["known_0"]) == {"heads", "neurons"}
    (page,) = write_pages(found.folder, tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").count("its layers cannot be run &lt;part&gt; by part") == 2


@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        (Fact("a", PROMPT, "Berlin", "Paris"), "subject"),
        (Fact("a", PROMPT, SUBJECT, "Rome", foil="London"), "begin with the same token"),
        (Fact("a", "word " * 80, "word", "Paris", occurrence=0), "maximum length"),
    ],
    ids=["no such subject", "foil like the answer", "too long"],
)
def test_a_fact_that_cannot_be_explained_is_dropped_with_the_reason(opened_knowing, tmp_path, fact, reason):
    found = runs.run(*opened_knowing, [fact], tmp_path / "run", settings=QUICK, progress=False)
    assert reason in found.dropped["a"]
    with pytest.raises(InputError, match="all units of the run were dropped"):
        write_pages(found.folder, tmp_path / "page.html")


@pytest.mark.parametrize(
    "fact",
    [
        Fact("a", "Eiffel Tower", "Eiffel Tower", "Paris"),
        Fact("a", "東京 is in", "東京", "日本"),
        Fact("a", "של in", "של", "עם"),
        Fact("a", "in in in", "in", "Paris", occurrence=1),
        Fact("a", "t", "t", "Paris"),
    ],
    ids=["subject at the end", "CJK", "right to left", "second occurrence", "one token"],
)
def test_odd_facts_have_pages(opened_knowing, fact):
    texts = (fact.prompt, fact.subject, fact.attribute)
    page = interpret.fact_page(*opened_knowing, *texts, occurrence=fact.occurrence, settings=QUICK, progress=False)
    assert not [name for name, part in page.details.items() if "missing" in part]
    assert page.to_html().startswith("<!doctype html>")
    assert len(page.to_frame()) == len(page.cells)


def test_a_notebook_displays_the_page_in_a_closed_frame(opened_knowing):
    page = interpret.fact_page(*opened_knowing, PROMPT, SUBJECT, "Paris", settings=QUICK, progress=False)
    shown = page._repr_html_()
    assert shown.startswith("<div><iframe srcdoc=")
    assert 'sandbox="allow-scripts"' in shown
    assert repr(page) == f"FactPage({PROMPT!r}, 'Paris')"
    assert len(page.agreements) == 6


def test_the_page_of_a_changed_file_is_refused(opened_knowing, tmp_path):
    found = runs.run(*opened_knowing, [KNOWN], tmp_path / "run", settings=QUICK, progress=False)
    (tmp_path / "run" / "facts" / "known_0.json").write_text("{}")
    with pytest.raises(RunError, match="known_0.json is missing or was changed"):
        write_pages(found.folder, tmp_path / "page.html")


def test_gains_over_every_control_are_shown_by_their_names(finished, tmp_path):
    from interpret.factpages.page import fact_page_html
    from interpret.factpages.stored import stored_facts

    known, *_ = stored_facts(finished)
    details = json.loads(json.dumps(known.details))
    for row in details["interpretations"]["rows"]:
        row["gain_over_text"] = 1.25  # a control of another version
    assert "over text +1.250" in fact_page_html(known.cells, details, finished.manifest)
    assert HOSTILE not in "".join(path.read_text(encoding="utf-8") for path in write_pages(finished.folder, tmp_path))


def test_figures_and_spreadsheets_are_made_of_the_rows(finished, tmp_path):
    assert run("figures", finished.folder, "-o", tmp_path / "figures") == 0
    assert {path.stem for path in (tmp_path / "figures").glob("*.png")} == {fact.name for fact in FACTS}
    assert len(read_run(finished.folder).to_frame()) == len(read_table(finished.folder, FactCell))
