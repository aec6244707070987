"""``interpret figures``: pictures of a run of ``trace`` or ``locate``, from its stored rows."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure

from interpret.cli.console import choice, make_folder, say
from interpret.drawing.panels import save
from interpret.errors import InputError
from interpret.facts.buckets import SCHEMES, Scheme
from interpret.facts.grids import Grid
from interpret.figures import locations, traces
from interpret.locating.tables import LocationGrid, location_grids, location_summary
from interpret.records import LocationAverage, LocationCell, TraceAverage, TraceCell, csv_header, to_csv
from interpret.storage import disk, run_folder
from interpret.tracing.tables import TraceGrid, trace_averages, trace_grids

AVERAGES = "averages.csv"


def figures_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace' or 'locate'; it may still be growing.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures, PNG and PDF.")] = Path(
        "figures"
    ),
    prompts: Annotated[int, typer.Option(min=0, help="How many facts, from the first on, get a heatmap each.")] = 10,
    fact: Annotated[
        list[str] | None,
        typer.Option(help="Instead: the name of a fact to draw, as in the table; may be given several times."),
    ] = None,
    buckets: Annotated[
        str | None, typer.Option(help="rome (six kinds of tokens) or kt (four). [default: as the run]")
    ] = None,
) -> None:
    """Draw a trace, or located facts: averages by kind of token, and facts one by one. No model is needed.

    interpret figures runs/trace
    """
    manifest = run_folder.read_manifest(run)
    scheme = choice("bucket scheme", buckets or manifest["circumstances"].get("buckets", "rome"), SCHEMES)
    if manifest["identity"].get("command") == "locate":
        _draw_locations(run, output, scheme, fact, prompts)
    else:
        _draw_traces(run, output, scheme, fact, prompts, window=manifest["identity"].get("window"))
    say(f"{output}: {len(list(output.glob('*.png')))} figures, each as PNG and PDF; the averages in {AVERAGES}")


def _draw_traces(
    run: Path, output: Path, scheme: Scheme, fact: Sequence[str] | None, prompts: int, *, window: int | None
) -> None:
    traced = trace_grids(run_folder.read_table(run, TraceCell))
    _save(output, _figures(traced, _chosen(traced, fact, prompts), scheme, window))
    averages = trace_averages(traced, scheme=scheme)
    disk.replace_whole(output / AVERAGES, csv_header(TraceAverage) + to_csv(averages))


def _draw_locations(run: Path, output: Path, scheme: Scheme, fact: Sequence[str] | None, prompts: int) -> None:
    located = location_grids(run_folder.read_table(run, LocationCell))
    _save(output, _location_figures(located, _chosen(located, fact, prompts), scheme))
    averages = location_summary(located, scheme=scheme)
    disk.replace_whole(output / AVERAGES, csv_header(LocationAverage) + to_csv(averages))


def _save(output: Path, figures: Iterator[tuple[str, Figure]]) -> None:
    make_folder(output)
    for name, figure in figures:
        save(figure, output / name)


def _location_figures(
    located: Sequence[LocationGrid], chosen: Sequence[str], scheme: Scheme
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a run of ``interpret locate`` by their names."""
    yield "average_heatmap", locations.location_figure(located, scheme=scheme)
    yield "average_lines", locations.location_lines(located, scheme=scheme)
    wanted = [grid for grid in located if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", locations.located_fact_figure(list(of_fact))


def _figures(
    traced: Sequence[TraceGrid], chosen: Sequence[str], scheme: Scheme, window: int | None
) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of a trace by their names."""
    yield "average_heatmap", traces.average_figure(traced, scheme=scheme, window=window)
    yield "average_lines", traces.line_figure(traced, scheme=scheme, window=window)
    if {"hidden"} < {grid.mediator for grid in traced} & {"hidden", "attn_severed", "mlp_severed"}:
        yield "severed_bars", traces.severed_figure(traced)
    wanted = [grid for grid in traced if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", traces.prompt_figure(list(of_fact), window=window)


def _chosen(grids: Sequence[Grid], facts: Sequence[str] | None, prompts: int) -> Sequence[str]:
    """Return the names of the facts to draw."""
    names = list(dict.fromkeys(grid.name for grid in grids))
    for name in facts or []:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"the run has no fact {name!r}{hint}")
    return facts or names[:prompts]
