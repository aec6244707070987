"""The tutorials: their stored outputs are of this code and version, and show what the text says of them."""

import re
import sys

import nbformat
import pytest

from reference.house import TOP

sys.path.insert(0, str(TOP / "docs"))
from run_tutorials import MADE_FROM, TUTORIALS, made_from

NAMES = [path.stem for path in TUTORIALS]


def stored(name):
    return nbformat.read(TOP / "docs" / "tutorials" / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(name):
    """All that the code of a tutorial printed or displayed, as text."""
    outputs = [output for cell in code_cells(stored(name)) for output in cell.outputs]
    return "\n".join(output.get("text", output.get("data", {}).get("text/plain", "")) for output in outputs)


def test_there_are_five():
    assert NAMES == ["attribute", "edit", "heads_and_neurons", "interpret", "trace"]


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_this_code_and_version(name):
    notebook = stored(name)
    assert notebook.metadata[MADE_FROM] == made_from(notebook), "run: make notebooks"
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]


def test_changed_code_has_other_outputs():
    notebook = stored("trace")
    code_cells(notebook)[0].source += "\nprint(1)"
    assert notebook.metadata[MADE_FROM] != made_from(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_failed_or_warned(name):
    outputs = [output for cell in code_cells(stored(name)) for output in cell.outputs]
    assert outputs
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_ends_with_a_question(name):
    file = TOP / "docs" / "tutorials" / f"{name}.ipynb"
    assert file.stat().st_size < 150_000
    last = stored(name).cells[-1]
    assert last.cell_type == "markdown"
    assert "?" in last.source.split("\n## A question for you\n")[1]
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_has_an_alternative_text(name):
    for cell in code_cells(stored(name)):
        pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert bool(pictures) == bool(cell.metadata.get("mystnb", {}).get("image", {}).get("alt")), cell.source


def numbers(name, pattern):
    """The numbers that a tutorial printed at a place."""
    found = re.search(pattern, shown(name))
    assert found, pattern
    return [float(one) for one in found.groups()]


def test_what_the_text_says_of_interpretations():
    text = shown("interpret")
    assert re.search(r"with the state: .*instrument", text)
    assert not re.search(r"with nothing: .*instrument", text)
    assert len(re.findall(r"^layer \d+, a musical", text, re.MULTILINE)) >= 2


def test_what_the_text_says_of_traces():
    clean, corrupted = numbers("trace", r"P\(Paris\): ([\d.]+) clean, ([\d.]+) with noise")
    assert clean > 5 * corrupted
    (hidden,), (severed,), (attention,) = (
        numbers("trace", rf"{name} +([\d.]+)") for name in ("hidden", "mlp_severed", "attn_severed")
    )
    assert severed < 0.8 * hidden < attention
    first, last = numbers("trace", r"hidden around layers (\d+) to (\d+)")
    assert 15 <= first < last < 30


def test_what_the_text_says_of_attributions():
    (occluded,) = [cell for cell in code_cells(stored("attribute")) if cell.source.startswith("occluded")]
    scores = [float(line.split()[-1]) for line in occluded.outputs[-1].data["text/plain"].splitlines()[1:]]
    assert min(scores) > 0.9 * max(scores)
    table = re.search(r"insertion_low.*\n((?:\d .*\n?){4})", shown("attribute"))[1]
    rows = [[float(one) for one in line.split()[2:5]] for line in table.strip().splitlines()]
    assert max(low for _, low, _ in rows) < min(high for _, _, high in rows)


def test_what_the_text_says_of_heads_and_neurons():
    total, logit = numbers("heads_and_neurons", r"sum of all parts ([\d.]+), the logit ([\d.]+)")
    assert abs(total - logit) <= 0.011
    (every,) = numbers("heads_and_neurons", r"with all heads: ([\d.]+)")
    (without,) = numbers("heads_and_neurons", r"without head \d+ of layer \d+: ([\d.]+) <- this one")
    others = re.findall(r"without head \d+ of layer \d+: ([\d.]+) $", shown("heads_and_neurons"), re.MULTILINE)
    assert without < 0.5 * every
    assert min(float(one) for one in others) > 0.9 * every
    few, neurons = numbers("heads_and_neurons", r"q_value of at most 5%: (\d+) of (\d+)")
    assert 0.4 < few / neurons < 0.5
    (unchanged,) = numbers("heads_and_neurons", r"without neuron \d+ of layer \d+: ([\d.]+)")
    assert unchanged > 0.95 * every


def test_what_the_text_says_of_edits():
    text = shown("edit")
    assert re.search(r"pizza: .*Italian", text)
    assert not re.search(r"(?:random vector|nothing inserted): .*Italian", text)
    strengths = [float(one) for one in re.findall(r"ln P\(Italian\) = (-[\d.]+)", text)]
    assert strengths[-1] > strengths[0] + 1
    assert "the weights afterwards are those from before: True" in text
