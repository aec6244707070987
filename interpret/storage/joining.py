"""Join the tables of several runs: rows about the same prompt, token and hidden state."""

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
    """Join the tables of several runs on prompt, token and hidden state.

    Runs of ``selfie``, ``trace``, ``locate`` and ``probe lens`` have rows about hidden states. Prompts are compared as
    the model read them, with the chat template; traced prompts have none, so set ``"raw": true`` in the prompt file of
    ``selfie`` or ``probe lens`` to join them with a trace. A table with several mediators, metrics, interpretation
    prompts or predicted tokens has several rows per state; the joined table has one row for each combination, so select
    the rows you need by these columns.

    Args:
        runs: prefix -> run folder, such as ``{"selfie": "runs/mine", "trace": "runs/facts"}``. The prefix is put
            before the names of the run's columns: ``layer_idx`` of the first run becomes ``selfie.layer_idx``.
        how: ``inner`` keeps the states that all runs have, ``outer`` the states of any run.

    Returns:
        A table with the columns ``prompt``, ``token_idx`` and ``state`` (see ``interpret.records.state_name``), then
        the prefixed columns of each run. Rows are in the order of the first run with ``inner``, and sorted by the
        three columns with ``outer``.

    Raises:
        InputError: if fewer than two runs are given, or a run has no rows about hidden states.
        RunError: if a folder is not a run folder, or cannot be read.
    """
    if len(runs) < 2:
        raise InputError(f"joining needs two or more runs; got {len(runs)}")
    tables = [_by_state(name, folder) for name, folder in runs.items()]
    return reduce(lambda left, right: left.merge(right, on=KEYS, how=how), tables)


def _by_state(name: str, folder: Path | str) -> pd.DataFrame:
    """Return the rows of a run that are about a state: the key columns, and the other columns with a prefix."""
    table = read_run(folder).to_frame()
    missing = [column for column in ("prompt", "token_idx", "site", "layer_idx") if column not in table]
    if missing:
        raise InputError(f"{folder}: its rows are not about states of tokens; the table has no column {missing[0]!r}")
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
