"""``interpret compare``: comparison of two stored trace runs."""

import re

import numpy as np
import pandas as pd
import pytest

from interpret import storage
from interpret.records import TraceCell
from reference.commands import run
from reference.trace_rows import cells

MEDIATORS = ("hidden", "mlp_severed")


def effects_of(seed):
    return np.random.default_rng(seed).uniform(-0.1, 0.5, (4, 5))


def stored(folder, grids):
    """Write a run with the given effects, [T, L], by name and mediator."""
    names = list(dict.fromkeys(name for name, _ in grids))
    with storage.open_run(folder, TraceCell, identity={}, circumstances={}, units=names) as opened:
        for name in names:
            rows = [
                row
                for (of, mediator), effects in grids.items()
                if of == name
                for row in cells(effects.tolist(), name=of, mediator=mediator)
            ]
            opened.write(name, rows)
    return folder


def test_ranks_and_peaks_are_compared_fact_by_fact(tmp_path, capsys):
    one = {(f"f_{n}", mediator): effects_of(n) for n in range(3) for mediator in MEDIATORS}
    two = {key: effects + effects_of(int(key[0][-1]) + 9) for key, effects in one.items() if key[0] != "f_2"}
    two["f_1", "hidden"] = 2 * one["f_1", "hidden"]
    assert run("compare", stored(tmp_path / "one", one), stored(tmp_path / "two", two)) == 0
    lines = capsys.readouterr().out.splitlines()
    for mediator in MEDIATORS:
        (line,) = [line for line in lines if mediator in line]
        keys = [(f"f_{n}", mediator) for n in range(2)]
        ranks = [pd.DataFrame([one[key].ravel(), two[key].ravel()]).T.corr("spearman").iloc[0, 1] for key in keys]
        same = sum(one[key].argmax() == two[key].argmax() for key in keys)
        figures = re.findall(r"[+-]\d\.\d\d", line)
        assert [float(figure) for figure in figures] == pytest.approx(
            [np.mean(ranks), min(ranks), max(ranks)], abs=0.0051
        )
        assert f"{same} of 2" in line


def test_cells_that_are_not_finite_are_left_out_and_counted(tmp_path, capsys):
    effects = effects_of(0)
    broken, elsewhere = effects.copy(), effects[::-1].copy()
    broken[np.unravel_index(effects.argmax(), effects.shape)] = np.nan
    one = stored(tmp_path / "one", {("f_0", "hidden"): broken, ("f_0", "mlp_severed"): np.full((4, 5), np.inf)})
    two = stored(tmp_path / "two", {("f_0", "hidden"): elsewhere, ("f_0", "mlp_severed"): effects})
    assert run("compare", one, two) == 0
    lines = capsys.readouterr().out.splitlines()
    known = np.isfinite(broken)
    expected = pd.DataFrame([broken[known], elsewhere[known]]).T.corr("spearman").iloc[0, 1]
    (line,) = [line for line in lines if "hidden" in line]
    assert [float(number) for number in re.findall(r"[+-]\d\.\d\d", line)] == pytest.approx([expected] * 3, abs=0.0051)
    (line,) = [line for line in lines if "mlp_severed" in line]
    assert not re.findall(r"[+-]\d\.\d\d", line)
    assert "21 of 80 cells are not finite (NaN or infinity) and left out of averages and peaks" in lines


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({("g_0", "hidden"): effects_of(0)}, "{one} and {two} have no fact, mediator and metric in common"),
        (
            {("f_0", "hidden"): effects_of(0)[:3]},
            "fact 'f_0' differs between {one} and {two}; compare traces of the same facts",
        ),
    ],
)
def test_traces_of_other_facts_are_refused(tmp_path, capsys, other, message):
    one = stored(tmp_path / "one", {("f_0", "hidden"): effects_of(0)})
    two = stored(tmp_path / "two", other)
    assert run("compare", one, two) == 2
    assert " ".join(capsys.readouterr().err.split()) == "error: " + message.format(one=one, two=two)
