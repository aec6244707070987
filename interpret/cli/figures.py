"""``interpret figures``: figures of a run of ``trace``, ``locate`` or a probe, from its run folder."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.cli.console import choice, make_folder, say
from interpret.cli.options import Imports
from interpret.errors import InputError, brief, closest, one_line
from interpret.probing.registry import PROBES
from interpret.records import LocationAverage, LocationCell, TraceAverage, TraceCell, csv_header, to_csv
from interpret.storage import disk, run_folder
from interpret.work.extensions import load_extensions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interpret.facts.buckets import Scheme
    from interpret.facts.grids import Grid
    from interpret.locating.tables import LocationGrid
    from interpret.stats import Average
    from interpret.tracing.tables import TraceGrid

AVERAGES = "averages.csv"


def figures_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace', 'locate' or 'probe'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures, as PNG and PDF.")] = Path(
        "figures"
    ),
    prompts: Annotated[
        int, typer.Option(min=0, help="Number of facts, starting with the first, that get a heatmap each.")
    ] = 10,
    fact: Annotated[
        list[str] | None,
        typer.Option(help="Instead of --prompts: name of a fact to draw, as in the table; may be given several times."),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            help="Kinds of tokens for averages: rome (six kinds) or kt (four kinds). [default: as in the run]"
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Draw figures of a run: average effects for each kind of token, and a heatmap per fact. No model is needed.

    interpret figures runs/trace

    The run is one of 'interpret trace' or 'interpret locate', which may still be in progress, or one of a probe for
    which a figure is registered.
    """
    from interpret.facts.buckets import SCHEMES

    load_extensions(imports or ())
    manifest = run_folder.read_manifest(run)
    scheme = choice("bucket scheme", buckets or str(manifest["circumstances"].get("buckets", "rome")), SCHEMES)
    command = str(manifest["identity"].get("command", "trace"))
    averages = f"; the averages in {AVERAGES}"
    if command == "locate":
        _draw_locations(run, output, scheme, fact, prompts)
    elif command == "trace":
        window = manifest["identity"].get("window")
        _draw_traces(run, output, scheme, fact, prompts, window=window if isinstance(window, int) else None)
    else:
        _draw_probe(run, output, command)
        averages = ""
    say(f"{output}: {len(list(output.glob('*.png')))} figures, each as PNG and PDF{averages}")


def _draw_probe(run: Path, output: Path, command: str) -> None:
    """Draw the table of a probe with the figure function that is registered for it."""
    probe = PROBES.get(command.removeprefix("probe "))
    if probe is None or probe.figure is None:
        use = "; use 'interpret report'" if command == "selfie" else ""
        raise InputError(f"{run} is a run of 'interpret {one_line(command)}', for which there are no figures{use}")
    run_folder.read_rows(run, probe.record)  # says why if there are none
    _save(output, iter([(probe.name, probe.figure(run_folder.read_run(run, probe.record).to_frame()))]))


def _draw_traces(
    run: Path, output: Path, scheme: "Scheme", fact: Sequence[str] | None, prompts: int, *, window: int | None
) -> None:
    from interpret.facts.grids import bucket_averages, by_part
    from interpret.tracing.tables import trace_averages, trace_grids

    traced = trace_grids(run_folder.read_rows(run, TraceCell))
    _save(output, _figures(traced, _chosen(traced, fact, prompts), scheme, window))
    _say_if_few([bucket_averages(of_one, scheme=scheme) for of_one in by_part(traced, "mediator").values()], scheme)
    averages = trace_averages(traced, scheme=scheme)
    disk.replace_whole(output / AVERAGES, csv_header(TraceAverage) + to_csv(averages))


def _draw_locations(run: Path, output: Path, scheme: "Scheme", fact: Sequence[str] | None, prompts: int) -> None:
    from interpret.facts.grids import bucket_averages, by_part
    from interpret.locating.tables import location_grids, location_summary

    located = location_grids(run_folder.read_rows(run, LocationCell))
    _save(output, _location_figures(located, _chosen(located, fact, prompts), scheme))
    _say_if_few([bucket_averages(of_one, scheme=scheme) for of_one in by_part(located, "site").values()], scheme)
    averages = location_summary(located, scheme=scheme)
    disk.replace_whole(output / AVERAGES, csv_header(LocationAverage) + to_csv(averages))


def _say_if_few(averages: "Sequence[Average]", scheme: "Scheme") -> None:
    """Print that averages are over too few facts."""
    from interpret.facts.grids import bucket_peaks, too_few

    if words := too_few([peak for one in averages for peak in bucket_peaks(one, scheme=scheme)]):
        say(words)


def _save(output: Path, figures: "Iterator[tuple[str, Figure]]") -> None:
    from interpret.drawing.panels import save

    make_folder(output)
    for name, figure in figures:
        save(figure, output / name)


def _location_figures(
    located: "Sequence[LocationGrid]", chosen: Sequence[str], scheme: "Scheme"
) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for a run of ``interpret locate``."""
    from interpret.figures import locations

    yield "average_heatmap", locations.location_figure(located, scheme=scheme)
    yield "average_lines", locations.location_lines(located, scheme=scheme)
    wanted = [grid for grid in located if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", locations.located_fact_figure(list(of_fact))


def _figures(
    traced: "Sequence[TraceGrid]", chosen: Sequence[str], scheme: "Scheme", window: int | None
) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for a trace."""
    from interpret.figures import traces

    yield "average_heatmap", traces.average_figure(traced, scheme=scheme, window=window)
    yield "average_lines", traces.line_figure(traced, scheme=scheme, window=window)
    if traces.severed_grids(traced):
        yield "severed_bars", traces.severed_figure(traced)
    wanted = [grid for grid in traced if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", traces.prompt_figure(list(of_fact), window=window)


def _chosen(grids: "Sequence[Grid]", facts: Sequence[str] | None, prompts: int) -> Sequence[str]:
    """Return the names of the facts to draw."""
    names = list(dict.fromkeys(grid.name for grid in grids))
    for name in facts or []:
        if name not in names:
            near = closest(name, names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise InputError(f"the run has no fact {brief(name)}{hint}")
    return facts or names[:prompts]
