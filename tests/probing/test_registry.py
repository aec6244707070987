"""A probe of the user's own is known to the call, the command, its table and its figure."""

import re
from dataclasses import dataclass

import pytest
import torch
from matplotlib.figure import Figure

from interpret.errors import InputError
from interpret.probing import PROBES, Probe, register_probe, run_probe
from interpret.storage import read_run
from reference.commands import FACT_PROMPTS, json_file, run

PROMPT, _ = FACT_PROMPTS[0]


@dataclass(frozen=True, kw_only=True)
class StateNorm:
    """The length of the last hidden state at one token."""

    name: str
    token_idx: int
    norm: float


def norm_reader(model, tokenizer, *, power=1):
    """Read the length of the last hidden state at the chosen tokens."""

    def read(probed):
        with torch.no_grad():
            states = model(torch.tensor([probed.tokens.ids]), output_hidden_states=True).hidden_states[-1][0]
        return [
            StateNorm(name=probed.name, token_idx=token, norm=states[token].norm().item() ** power)
            for token in probed.positions
        ]

    return read


def norm_figure(table):
    figure = Figure()
    figure.subplots().plot(table["token_idx"], table["norm"])
    return figure


NORM = Probe("state_norm", "the length of the last hidden state", StateNorm, norm_reader, figure=norm_figure)


@pytest.fixture
def own():
    register_probe(NORM)
    yield
    del PROBES["state_norm"]


@pytest.fixture
def examples(tmp_path):
    entry = {"prompt": PROMPT, "category": "fact", "raw": True}
    return json_file(tmp_path / "examples.json", {"examples": [entry]})


def test_a_probe_of_the_users_is_in_call_table_and_figure(own, opened, model_folder, examples, tmp_path, capsys):
    model, tokenizer = opened
    found = run_probe(
        model,
        tokenizer,
        "state_norm",
        examples,
        tmp_path / "python",
        tokens="all",
        options={"power": 2},
        progress=False,
    )
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    states = model(ids, output_hidden_states=True).hidden_states[-1][0]
    assert found.to_frame()["norm"].tolist() == pytest.approx(states.norm(dim=-1).pow(2).tolist(), rel=1e-5)
    argv = (
        "--examples",
        examples,
        "--model",
        model_folder,
        "--device",
        "cpu",
        "--tokens",
        "all",
        "--option",
        "power=2",
    )
    assert run("probe", "state_norm", "--output", tmp_path / "run", *argv) == 0
    assert (tmp_path / "run" / "table.csv").read_bytes() == (tmp_path / "python" / "table.csv").read_bytes()
    assert read_run(tmp_path / "run", StateNorm).records() == found.records()
    assert run("figures", tmp_path / "run", "-o", tmp_path / "figures") == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"state_norm.png", "state_norm.pdf"}
    capsys.readouterr()
    assert run("probe", "--help") == 0
    assert "state_norm" in capsys.readouterr().out


def test_a_run_of_a_probe_without_a_page_is_said_by_its_command(own, opened, examples, tmp_path, capsys):
    run_probe(*opened, "state_norm", examples, tmp_path / "run")
    capsys.readouterr()
    assert run("report", tmp_path / "run", "-o", tmp_path / "page.html") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"error: {tmp_path / 'run'} is a run of 'interpret probe state_norm'; there are pages for runs of" in said


@pytest.mark.parametrize("name", ["lens", "neurons"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(InputError, match=f"^probe {name!r}"):
        register_probe(Probe(name, "", StateNorm, norm_reader))


def test_a_name_of_two_words_is_refused():
    message = "probe 'two words': a name is one word of letters, digits and underscores"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        register_probe(Probe("two words", "", StateNorm, norm_reader))
