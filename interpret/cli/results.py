"""The results of run folders, as what shows itself: one row for each command that writes runs."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from interpret.errors import InputError, one_line
from interpret.records import TraceCell, UnitCell
from interpret.storage import run_folder
from interpret.storage.layout import TABLES
from interpret.storage.manifest import command_of

if TYPE_CHECKING:
    from interpret.display import Shown

RESULTS = {
    "selfie": "selfie.show.Interpretations",
    "trace": "tracing.show.Traces",
    "attribute": "attribution.run_files.attribution_of",
    "attribute --compare": "attribution.result.comparison.Comparison",
    "locate": "locating.show.Locations",
    "probe lens": "probing.show.LensReadings",
    "probe logits": "probing.show.LogitShares",
    "probe heads": "probing.show.HeadViews",
    "probe neurons": "probing.show.NeuronEffects",
}
"""Command of a run -> what makes its result of its rows; of an attribution, of its files."""
UNITS_TABLE = "units.csv"
"""The table of single heads and neurons of a trace, which is its result if the trace has nothing else."""


def result_of(run: Path) -> "Shown":
    """Return the result of a run, which may still be in progress.

    Raises:
        InputError: if the run has no rows yet, or is one of a probe of the user.
        RunError: if the folder is not a run folder.
    """
    command = command_of(run_folder.read_manifest(run))
    units = run / UNITS_TABLE
    if command == "trace" and units.is_file() and not run_folder.read_table(run, TraceCell):
        from interpret.tracing import UnitTraces

        return UnitTraces(run_folder.read_table(units, UnitCell))
    if command not in RESULTS:
        known = ", ".join(f"'interpret {name}'" for name in RESULTS)
        raise InputError(f"{run} is a run of 'interpret {one_line(command)}'; there are pages for runs of {known}")
    rows: list[object] = run_folder.read_rows(run, TABLES[command])  # says why if there are none
    module, _, name = RESULTS[command].rpartition(".")
    make = getattr(import_module(f"interpret.{module}"), name)
    result: Shown = make(run_folder.read_run(run)) if command == "attribute" else make(rows)
    return result
