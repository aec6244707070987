"""The files of a run folder, and the commands that write one."""

from collections.abc import Mapping
from types import MappingProxyType

from interpret.records import (
    FactCell,
    HeadView,
    Interpretation,
    LensReading,
    LensTraining,
    LocationCell,
    LogitShare,
    MethodComparison,
    NeuronEffect,
    TokenScore,
    TraceCell,
)

TABLE, MANIFEST, PROGRESS = "table.csv", "manifest.json", "progress.jsonl"
WHAT_TO_DO = "give another --output folder, or delete this one"
TABLES: Mapping[str, type] = MappingProxyType(
    {
        "selfie": Interpretation,
        "trace": TraceCell,
        "attribute": TokenScore,
        "attribute --compare": MethodComparison,
        "locate": LocationCell,
        "fact": FactCell,
        "probe lens": LensReading,
        "probe logits": LogitShare,
        "probe heads": HeadView,
        "probe neurons": NeuronEffect,
        "probe train-lens": LensTraining,
    }
)
"""Command in a run's identity -> record type of its table. The record types of user-defined probes are not listed."""

NEXT_COMMAND: Mapping[str, str] = MappingProxyType(
    {
        "selfie": "interpret report",
        "fact": "interpret report",
        "attribute": "interpret report",
        "attribute --compare": "interpret figures",
        "trace": "interpret figures",
        "locate": "interpret figures",
    }
    | {command: "interpret figures" for command in TABLES if command.startswith("probe ")}
)
"""Command of a run -> the command that shows its results."""
