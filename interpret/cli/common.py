"""What commands share: the options that open a model, the two consoles, messages and progress bars."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret import provenance
from interpret.fact_runs import drop_counts
from interpret.models import load
from interpret.runs import MANIFEST, TABLE, Run, read_manifest

out, err = Console(), Console(stderr=True)
NOT_ALL = 3
"""Exit code where the run is complete, but for some units that could not be done."""
MOST_SHOWN = 10

Model = Annotated[str, typer.Option(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU is taken if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; as stored in the model if left out.")]
Eight = Annotated[bool, typer.Option("--load-in-8bit", help="Quantize the linear layers to 8 bits.")]
Four = Annotated[bool, typer.Option("--load-in-4bit", help="Quantize the linear layers to 4 bits.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread a large model by accelerate, as in 'auto'.")]


@dataclass(frozen=True)
class Opened:
    """A model as the options asked for it, and what a manifest tells of that."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    """Which model and weights, and how their numbers are kept."""
    circumstances: dict[str, Any]
    """Versions and device."""


def open_model(
    model: str, device: str | None, dtype: str | None, device_map: str | None, load_in_8bit: bool, load_in_4bit: bool
) -> Opened:
    """Open the model that the options name; they are those of ``models.load``.

    Raises:
        ModelError: as ``models.load`` does.
    """
    quantized = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    lm, tokenizer = load(model, device=device, dtype=dtype, device_map=device_map, **quantized, say=say)
    kept = str(lm.dtype).removeprefix("torch.")
    return Opened(
        lm,
        tokenizer,
        {"model": model, "weights": weights(lm), "dtype": kept, **quantized},
        {"versions": provenance.versions(), "device": str(lm.device), "device_map": device_map},
    )


def weights(model: PreTrainedModel) -> str:
    """Tell which weights these are: the hash of a folder's files or of a GGUF file, or the commit on the hub."""
    folder = Path(model.config._name_or_path)
    if folder.is_file():
        return f"sha256 {provenance.file_sha256(folder)}"
    return f"sha256 {provenance.weights_sha256(folder)}" if folder.is_dir() else f"commit {model.config._commit_hash}"


def say(message: str) -> None:
    """Tell the user something beside the results."""
    err.print(escape(message), highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, items: Iterable[Any], total: int) -> Iterator[Iterator[Any]]:
    """Show a bar with the time left while ``items`` are taken."""
    parts = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *parts, console=err) as bar:
        task = bar.add_task(what, total=total)

        def counted() -> Iterator[Any]:
            for item in items:
                bar.advance(task)
                yield item

        yield counted()


def finish_units(run: Run, steps: Iterable[str], what: str, noun: str) -> None:
    """Take what does the pending units of a run one by one, with a progress bar; tell what is safe when interrupted.

    Args:
        run: open.
        steps: yields each unit when it is safe.
        what: is done, the words before the bar.
        noun: units, in the plural.

    Raises:
        Exit: with code 130, if the user interrupts.
    """
    if run.finished:
        say(f"{len(run.finished)} of {len(run.units)} {noun} are already done")
    if not run.pending:
        return
    with progress(what, steps, len(run.pending)) as counted:
        try:
            for _ in counted:
                pass
        except KeyboardInterrupt:
            say(f"stopped with {len(run.finished)} of {len(run.units)} {noun} safe; the same command continues")
            raise typer.Exit(130) from None


def tell_dropped(folder: Path, rows: int, noun: str, done: str, failures: Sequence[str]) -> None:
    """Say how many rows a finished run has, and which units have none and why.

    Args:
        folder: of the run.
        rows: in its table.
        noun: units, in the plural.
        done: what became of those that were kept.
        failures: how reasons begin of units that should have been done.

    Raises:
        Exit: with code 3, if there are such units.
    """
    manifest = read_manifest(folder)
    counts, dropped = manifest["counts"], manifest["dropped"]
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(drop_counts(dropped).items()))
    out.print(f"{rows} rows in {folder / TABLE}", highlight=False, soft_wrap=True)
    out.print(
        f"{counts['in']} {noun} in, {counts['kept']} {done}, {counts['dropped']} dropped{f': {why}' if why else ''}",
        highlight=False,
        soft_wrap=True,
    )
    failed = [entry for entry in dropped.items() if entry[1].startswith(tuple(failures))]
    for unit, reason in failed[:MOST_SHOWN]:
        say(f"{unit}: {reason}")
    if len(failed) > MOST_SHOWN:
        say(f"and {len(failed) - MOST_SHOWN} more, see 'dropped' in {folder / MANIFEST}")
    if failed:
        raise typer.Exit(NOT_ALL)
