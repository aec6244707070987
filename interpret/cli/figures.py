"""``interpret figures``: figures of a run of any command, from its run folder."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.cli.console import choice, make_folder, say
from interpret.cli.options import Imports
from interpret.cli.results import UNITS_TABLE, result_of
from interpret.errors import InputError, brief, closest
from interpret.probing.registry import PROBES
from interpret.records import (
    LensAverage,
    LensReading,
    LocationAverage,
    LocationCell,
    MethodComparison,
    TraceAverage,
    TraceCell,
    UnitCell,
    csv_header,
    to_csv,
)
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
    run: Annotated[Path, typer.Argument(help="Run folder of any command; the run may still be in progress.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures, as PNG and PDF.")] = Path(
        "figures"
    ),
    prompts: Annotated[
        int, typer.Option(min=0, help="Number of facts or prompts, starting with the first, that get a figure each.")
    ] = 10,
    fact: Annotated[
        list[str] | None,
        typer.Option(
            help="Instead of --prompts: name of a fact or prompt to draw, as in the table; may be given several times."
        ),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            help="Kinds of tokens for averages: rome (six kinds) or kt (four kinds). [default: as in the run]"
        ),
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Divide the effects of each traced fact by its total effect.")
    ] = False,
    imports: Imports = None,
) -> None:
    """Draw figures of a run: one per fact or prompt, and averages of traces, locations and lenses. No model is needed.

    interpret figures runs/trace
    """
    from interpret.facts.buckets import SCHEMES

    load_extensions(imports or ())
    manifest = run_folder.read_manifest(run)
    scheme = choice("bucket scheme", buckets or str(manifest["circumstances"].get("buckets", "rome")), SCHEMES)
    command = str(manifest["identity"].get("command", "trace"))
    if normalise and command != "trace":
        raise InputError(f"--normalise divides by the total effect of a trace; {run} is a run of {command}")
    averages = f"; the averages in {AVERAGES}"
    if command == "locate":
        _draw_locations(run, output, scheme, fact, prompts)
    elif command == "attribute --compare":
        _save(output, _comparison_figures(run, fact, prompts))
        averages = ""
    elif command == "trace":
        window = manifest["identity"].get("window")
        _draw_traces(run, output, scheme, fact, prompts, normalise, window if isinstance(window, int) else None)
    elif command == "probe lens":
        _draw_lenses(run, output, fact, prompts)
    else:
        _save(output, _own_figure(run, command) or _figures_of_inputs(run, fact, prompts))
        averages = ""
    if not (output / AVERAGES).is_file():
        averages = ""
    say(f"{output}: {len(list(output.glob('*.png')))} figures, each as PNG and PDF{averages}")


def _draw_lenses(run: Path, output: Path, facts: Sequence[str] | None, prompts: int) -> None:
    from interpret.figures.lenses import lens_figure
    from interpret.probing.lens_averages import lens_averages

    averages = lens_averages(run_folder.read_rows(run, LensReading))
    _save(output, iter([("average_lenses", lens_figure(averages))]))
    _save(output, _figures_of_inputs(run, facts, prompts))
    disk.replace_whole(output / AVERAGES, csv_header(LensAverage) + to_csv(averages))


def _comparison_figures(run: Path, facts: Sequence[str] | None, prompts: int) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for a comparison of attribution methods: the mean curves, and each chosen prompt."""
    from interpret.attribution import Comparison

    yield "average_curves", Comparison(run_folder.read_rows(run, MethodComparison)).average_figure()
    yield from _figures_of_inputs(run, facts, prompts)


def _own_figure(run: Path, command: str) -> "Iterator[tuple[str, Figure]] | None":
    """Return the figure that a registered probe draws of its table; None if it has none."""
    probe = PROBES.get(command.removeprefix("probe "))
    if probe is None or probe.figure is None:
        return None
    run_folder.read_rows(run, probe.record)  # says why if there are none
    return iter([(probe.name, probe.figure(run_folder.read_run(run, probe.record).to_frame()))])


def _figures_of_inputs(run: Path, facts: Sequence[str] | None, prompts: int) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for the chosen inputs of a run."""
    result = result_of(run)
    folder = run_folder.read_run(run)
    units = [unit for unit in folder.units if unit not in folder.dropped]
    names = [panel.name or units[number] for number, panel in enumerate(result.view().panels())]
    chosen, drawn = _among(list(dict.fromkeys(names)), facts, prompts), Counter[str]()
    for number, name in enumerate(names):
        if name in chosen:
            again = f"_{drawn[name]}" if drawn[name] else ""
            drawn[name] += 1
            yield file_name(name) + again, result.figure(number)


def file_name(name: str) -> str:
    """Return a name without the characters that file names must not have.

    >>> file_name("a/b: c_1")
    'a_b_ c_1'
    """
    return re.sub(r'[<>:"/\\|?*\x00-\x1f]', "_", name)


def _draw_traces(
    run: Path,
    output: Path,
    scheme: "Scheme",
    fact: Sequence[str] | None,
    prompts: int,
    normalise: bool,
    window: int | None,
) -> None:
    from interpret.facts.grids import bucket_averages, by_part
    from interpret.tracing.tables import normalised, trace_averages, trace_grids, with_metric

    units = run / UNITS_TABLE
    if units.is_file():
        _save(output, _unit_figures(run_folder.read_table(units, UnitCell)))
        if not run_folder.read_table(run, TraceCell):  # the run has heads or neurons only
            return
    traced = trace_grids(run_folder.read_rows(run, TraceCell))
    traced = normalised(traced) if normalise else traced
    by_metric = by_part(traced, "metric")
    chosen = _chosen(traced, fact, prompts)
    for metric, of_one in by_metric.items():
        drawn = _figures(of_one, chosen, scheme, window)
        _save(output, ((with_metric(name, metric, by_metric), figure) for name, figure in drawn))
    of_mediators = [grids for of_one in by_metric.values() for grids in by_part(of_one, "mediator").values()]
    _say_if_few([bucket_averages(grids, scheme=scheme) for grids in of_mediators], scheme)
    averages = trace_averages(traced, scheme=scheme)
    disk.replace_whole(output / AVERAGES, csv_header(TraceAverage) + to_csv(averages))


def _unit_figures(rows: Sequence[UnitCell]) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for the heads of a trace, if it has some: one figure per metric."""
    from interpret.figures.traces import heads_figure
    from interpret.tracing.tables import with_metric

    heads = [row for row in rows if row.mediator == "heads"]
    metrics = dict.fromkeys(row.metric for row in heads)
    for metric in metrics:
        of_one = [row for row in heads if row.metric == metric]
        yield with_metric("heads_heatmap", metric, metrics), heads_figure(of_one)


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
    from interpret.locating.show import located_fact_figure

    yield "average_heatmap", locations.location_figure(located, scheme=scheme)
    yield "average_lines", locations.location_lines(located, scheme=scheme)
    wanted = [grid for grid in located if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", located_fact_figure(list(of_fact))


def _figures(
    traced: "Sequence[TraceGrid]", chosen: Sequence[str], scheme: "Scheme", window: int | None
) -> "Iterator[tuple[str, Figure]]":
    """Yield (name, figure) for the traces of one metric."""
    from interpret.figures import traces
    from interpret.tracing.show import prompt_figure

    yield "average_heatmap", traces.average_figure(traced, scheme=scheme, window=window)
    yield "average_lines", traces.line_figure(traced, scheme=scheme, window=window)
    if traces.severed_grids(traced):
        yield "severed_bars", traces.severed_figure(traced)
    if traces.knockout_grids(traced):
        yield "knockout_curves", traces.knockout_figure(traced, window=window)
    wanted = [grid for grid in traced if grid.name in chosen]
    for name, of_fact in groupby(wanted, key=lambda grid: grid.name):
        yield f"fact_{name}", prompt_figure(list(of_fact), window=window)


def _chosen(grids: "Sequence[Grid]", facts: Sequence[str] | None, prompts: int) -> Sequence[str]:
    """Return the names of the facts to draw."""
    return _among(list(dict.fromkeys(grid.name for grid in grids)), facts, prompts)


def _among(names: Sequence[str], facts: Sequence[str] | None, prompts: int) -> Sequence[str]:
    """Return the names that were asked for, or the first ones."""
    for name in facts or []:
        if name not in names:
            near = closest(name, names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise InputError(f"the run has no fact or prompt {brief(name)}{hint}")
    return facts or names[:prompts]
