"""Run the demo notebook as a user does, in a folder of its own, and check its outputs."""

import re

import nbclient
import nbformat
import pytest

import interpret

NOTEBOOK = interpret.example("interpretation_demo")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(tmp_path_factory.mktemp("empty"))}}
    nbclient.NotebookClient(notebook, timeout=1500, resources=folder).execute()
    return notebook


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


@pytest.mark.notebook
# pyzmq warns about the local socket of the kernel.
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_the_notebook_runs_and_shows_what_its_text_promises(run):
    shown = "".join(output.get("text", "") for output in outputs(run))
    with_pizza = next(line for line in shown.splitlines() if line.startswith("with pizza"))
    nothing = next(line for line in shown.splitlines() if line.startswith("nothing inserted"))
    assert "Italian" in with_pizza
    assert "Italian" not in nothing
    assert "interpretations are more probable with their own state than with either control" in shown
    total, logit = re.search(r"sum of all contributions ([\d.]+), the logit ([\d.]+)", shown).groups()
    assert float(total) == pytest.approx(float(logit), abs=2e-3)
    assert re.search(r"[1-9]\d* of 9216 neurons differ", shown)
    assert re.search(r"P\(Paris\) is 0\.\d+, and 0\.\d+ without neuron", shown)
    data = [output["data"] for output in outputs(run) if "data" in output]
    titles = re.findall(r"&lt;title&gt;(.*?)&lt;/title&gt;", "".join(one.get("text/html", "") for one in data))
    assert [title.partition(":")[0] for title in titles] == [
        "Interpretations",
        "Interpretations",
        "Logit lens",
        "Direct logit attribution",
        "Causal trace of Paris",
        "Attribution of P(Paris) − P(London) by input_x_gradient",
    ]
    assert sum("image/png" in one for one in data) == 1, "the figure of the neurons"


@pytest.mark.notebook
def test_the_notebook_says_nothing_on_the_error_stream(run):
    assert [output["text"] for output in outputs(run) if output.get("name") == "stderr"] == []


def test_the_committed_notebook_carries_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert outputs(notebook) == []
    assert NOTEBOOK.stat().st_size < 20_000
