"""Runs of several analyses side by side: rows that are about the same state of the same token of the same prompt."""

from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Literal

import pandas as pd

from interpret.errors import InputError
from interpret.records.states import state_name
from interpret.storage.run_folder import read_run

KEYS = ["prompt", "token_idx", "state"]


def join_runs(runs: Mapping[str, Path | str], *, how: Literal["inner", "outer"] = "inner") -> pd.DataFrame:
    """Join the tables of runs on prompt, token and state.

    Runs of ``selfie``, ``trace``, ``locate`` and ``probe lens`` have rows about states. Their prompts are joined as the
    model read them, so a prompt that is to be joined with a trace is ``"raw": true`` in the file of ``selfie`` or
    ``probe lens``. A state stands in several rows of a table that lists several mediators, interpretation prompts or
    predicted tokens; the joined table has a row for each combination, so select in the tables' own columns.

    Args:
        runs: run folders by the names under which their columns appear, such as
            ``{"said": "runs/mine", "traced": "runs/facts"}``: column ``layer_idx`` of the first becomes
            ``said.layer_idx``.
        how: ``inner`` keeps states that all runs have, ``outer`` those of any.

    Returns:
        A table with the columns ``prompt``, ``token_idx``, ``state`` (see ``interpret.records.state_name``), and the
        other columns of each run, in the order of the first run.

    Raises:
        InputError: if fewer than two runs are given, or one has no rows about states.
        RunError: if a folder is no run, or cannot be read.
    """
    if len(runs) < 2:
        raise InputError(f"there is {len(runs)} run to join; give two or more")
    tables = [_by_state(name, folder) for name, folder in runs.items()]
    return reduce(lambda left, right: left.merge(right, on=KEYS, how=how), tables)


def _by_state(name: str, folder: Path | str) -> pd.DataFrame:
    """Return the rows of a run that are about a state, by its keys, the other columns under the run's name."""
    table = read_run(folder).to_frame()
    missing = [column for column in ("prompt", "token_idx", "site", "layer_idx") if column not in table]
    if missing:
        raise InputError(f"{folder}: its rows are about no state of a token: the table has no column {missing[0]!r}")
    table = table[table["token_idx"].notna() & table["layer_idx"].notna()]
    places = zip(table["site"], table["layer_idx"], strict=True)
    keys = pd.DataFrame(
        {
            "prompt": table["prompt"],
            "token_idx": table["token_idx"].astype(int),
            "state": [state_name(site, int(layer)) for site, layer in places],
        },
        index=table.index,
    )
    others = table.drop(columns=["prompt", "token_idx"]).add_prefix(f"{name}.")
    return pd.concat([keys, others], axis=1)
