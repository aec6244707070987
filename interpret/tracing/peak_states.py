"""The hidden states at the peaks of a trace, as prompts for ``interpret selfie``: what do they say?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interpret.errors import InputError
from interpret.records import TraceCell
from interpret.storage import run_folder
from interpret.tracing.tables import trace_peaks


def peak_prompts(run: Path | str) -> list[dict[str, Any]]:
    """Return the prompts of a trace with the states at their peaks, as rows of a prompt file.

    The peaks are those of ``trace_peaks``, by all metrics, of all mediators that restore a layer's output. The output
    of layer l is the input of layer l + 1, so its number in ``states`` is l + 1. The output of the last layer is no
    layer's input, so a peak there is left out.

    Args:
        run: a run folder of ``interpret trace``.

    Returns:
        A row per fact that has such a peak: ``prompt``, ``category`` (the fact's name), ``subject`` if
        it occurs once, ``raw`` (true) and ``states``, a list of (layer, token) pairs without repetition.

    Raises:
        InputError: if the run has no rows or no such peak, or its prompts were read in a chat template.
        RunError: if the folder is not a run folder.
    """
    if run_folder.read_manifest(run)["identity"].get("chat_template") is not None:
        raise InputError(f"{run}: its prompts were read in a chat template; only peaks of plain texts can be exported")
    rows = [row for row in run_folder.read_rows(run, TraceCell) if row.site == "resid_post"]
    prompts = _prompts(rows)
    if not prompts:
        raise InputError(f"{run} has no peak at the output of a layer other than the last; trace the mediator hidden")
    return prompts


def _prompts(rows: list[TraceCell]) -> list[dict[str, Any]]:
    last = max((row.layer_idx for row in rows), default=0)
    states = _states((peak.name, peak.layer_idx, peak.token_idx) for peak in trace_peaks(rows) if peak.layer_idx < last)
    facts = {row.name: row for row in rows}
    return [_prompt(facts[name], of_one) for name, of_one in states.items()]


def _prompt(fact: TraceCell, states: list[list[int]]) -> dict[str, Any]:
    # A prompt file has no place for which occurrence of the subject is meant.
    subject = {"subject": fact.subject} if fact.prompt.count(fact.subject) == 1 else {}
    return {"prompt": fact.prompt, "category": fact.name, **subject, "raw": True, "states": states}


def _states(peaks: Iterable[tuple[str, int, int]]) -> dict[str, list[list[int]]]:
    """Return the (layer, token) pairs of each fact, from its name and each peak's layer and token."""
    found: dict[str, list[list[int]]] = {}
    for name, layer, token in peaks:
        of_one = found.setdefault(name, [])
        if [layer + 1, token] not in of_one:
            of_one.append([layer + 1, token])
    return found
