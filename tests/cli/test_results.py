"""``interpret report`` and ``interpret figures`` serve the runs of every command."""

import pytest

from interpret import storage
from interpret.cli.figures import file_name
from interpret.cli.results import RESULTS as KINDS
from interpret.storage.layout import TABLES
from reference.commands import run
from reference.results import HOSTILE, RESULTS

ROWS = {
    "selfie": RESULTS["interpretations"],
    "attribute --compare": RESULTS["comparison"],
    "trace": RESULTS["traces"],
    "locate": RESULTS["locations"],
    "probe lens": RESULTS["lens"],
    "probe logits": RESULTS["shares"],
    "probe heads": RESULTS["heads"],
    "probe neurons": RESULTS["neurons"],
    "probe train-lens": RESULTS["training"],
}
"""Rows by command; the result of an attribution is read from its files, see ``tests/attribution/test_runs.py``."""


def test_there_is_a_result_of_every_command_that_writes_runs():
    assert list(KINDS) == list(TABLES)
    assert {*ROWS, "attribute", "fact"} == set(TABLES)  # runs of facts have pages of their own


@pytest.fixture
def folder(request, tmp_path):
    """The run folder of a command."""
    command, rows = request.param, ROWS[request.param]
    identity = {"command": command, "model": str(tmp_path / "tiny-model"), "seed": 7}
    units = list(dict.fromkeys(getattr(row, "name", "pairs") for row in rows))
    with storage.open_run(
        tmp_path / "run", TABLES[command], identity=identity, circumstances={"buckets": "rome"}, units=units
    ) as opened:
        for unit in units:
            opened.write(unit, [row for row in rows if getattr(row, "name", "pairs") == unit])
    return tmp_path / "run"


@pytest.mark.parametrize("folder", ROWS, indirect=True)
def test_report_makes_a_page_with_the_model_and_the_settings(folder, tmp_path, capsys):
    assert run("report", folder, "-o", tmp_path / "page.html") == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "tiny-model</title>" in page
    assert "<dt>seed</dt><dd>7</dd>" in page
    assert HOSTILE not in page
    assert "page.html: open it in a browser" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("folder", ["trace"], indirect=True)
def test_pages_of_two_runs_have_names_of_their_own(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "first.run")
    assert run("report", "first.run") == 0
    (tmp_path / "first.run").rename(tmp_path / "second")
    assert run("report", "second/") == 0
    assert {path.name for path in tmp_path.glob("*.html")} == {"first.run.html", "second.html"}


@pytest.mark.parametrize("folder", ROWS, indirect=True)
def test_figures_draws_a_figure_for_each_input(folder, tmp_path):
    assert run("figures", folder, "-o", tmp_path / "figures") == 0
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == {path.stem for path in (tmp_path / "figures").glob("*.pdf")}
    averages = {"average_heatmap", "average_lines"}
    assert (
        drawn
        == {
            "selfie": {"fact_1"},
            "trace": {"fact_a", "fact_b", *averages},
            "attribute --compare": {"a_1", "a_1_1", "average_curves"},
            "locate": {"fact_known_1", *averages},
            "probe lens": {"a_1", "average_lenses"},
            "probe logits": {"a_1"},
            "probe heads": {"a_1", "induction"},
            "probe neurons": {"neurons"},
            "probe train-lens": {"training"},
        }[storage.read_manifest(folder)["identity"]["command"]]
    )


@pytest.mark.parametrize("folder", ["probe lens"], indirect=True)
def test_a_prompt_is_chosen_by_its_name(folder, tmp_path, capsys):
    assert run("figures", folder, "-o", tmp_path / "figures", "--fact", "a_2") == 2
    assert "error: the run has no fact or prompt 'a_2'; did you mean 'a_1'?" in capsys.readouterr().err
    assert run("figures", folder, "-o", tmp_path / "figures", "--fact", "a_1") == 0


def test_names_become_names_of_files():
    assert file_name('a/b\\c: "1"') == "a_b_c_ _1_"


def test_a_folder_that_is_no_run_is_one_message(tmp_path, capsys):
    for command in ("report", "figures"):
        assert run(command, tmp_path) == 2
        assert "is not a run folder: it has no manifest.json" in capsys.readouterr().err.replace("\n", " ")
