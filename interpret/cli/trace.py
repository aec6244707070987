"""``interpret trace``: facts in, a run folder of causal traces out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from interpret import provenance, runs, trace_runs, trace_tables
from interpret.buckets import Scheme
from interpret.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Eight,
    Four,
    Opened,
    finish_units,
    open_model,
    out,
    tell_dropped,
)
from interpret.configs import METHODS, TraceConfig, load_config
from interpret.errors import InputError, unknown
from interpret.fact_files import load_facts
from interpret.fact_runs import BAD_ROW
from interpret.hook_names import check_module_names
from interpret.knowledge import RULES
from interpret.records import TraceCell, TracePeak
from interpret.trace_inputs import check_settings
from interpret.trace_runs import NOT_TRACED, TracePlan
from interpret.tracing import check_mediators


def trace_command(
    facts: Annotated[
        Path | None, typer.Option(help="File of facts, as known_1000.json; examples/facts.json shows the formats.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, also Knowledge-Tracing's; options given beside it win."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: table.csv, peaks.csv, grids, manifest.json. The same command continues it. "
            "[default: runs/trace]"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="'demo', a model folder, or a hub id. [default: demo]", show_default=False)
    ] = None,
    mediator: Annotated[
        list[str] | None,
        typer.Option(
            help="What is restored: hidden, attn_severed, mlp_severed, attn_window or mlp_window; may be given "
            "several times. [default: hidden, attn_severed, mlp_severed]"
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="s3: Gaussian, 3 standard deviations of the embeddings of the subjects of the whole file, as in ROME; "
            "or a number, u0.5, m, t3. [default: s3]"
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Draws of noise. [default: 10]")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise. [default: 0]")] = None,
    replace_embeddings: Annotated[
        bool | None,
        typer.Option("--replace/--add", help="Put the noise in place of the embeddings. [default: --add]"),
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Layers of the windows. [default: 10]")] = None,
    target: Annotated[
        str | None, typer.Option(help="first or whole: the answer's tokens that are read. [default: first]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="exact: every cell run; approximate: estimated from gradients; or screened: estimated, and the tenth "
            "that looks largest run. [default: exact]"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Trace the first facts only; a higher limit continues the run.")
    ] = None,
    only_known: Annotated[
        bool, typer.Option("--filter/--no-filter", help="Drop the facts the model does not know.")
    ] = True,
    rule: Annotated[
        str | None,
        typer.Option(
            help="words: what the model writes starts with the answer's words; or first_token, as in ROME. "
            "[default: words]"
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Trace where a model keeps facts: one CSV row a fact, mediator, token and layer, and average effects at the end.

    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some facts could not be traced.
    """
    given = {"noise": noise, "samples": samples, "seed": seed, "replace": replace_embeddings}
    wanted = _over(
        load_config(config) if config else TraceConfig(),
        {
            "model": model,
            "mediators": mediator and tuple(mediator),
            "method": method,
            "rule": rule,
            "device": device,
            "dtype": dtype,
        },
        {**given, "window": window, "target": target},
    )
    _check(wanted)
    path, folder = _paths(wanted, facts, output)
    plan = TracePlan(
        load_facts(path),
        limit=limit,
        mediators=wanted.mediators,
        settings=wanted.settings,
        method=wanted.method,
        only_known=only_known,
        rule=wanted.rule,
    )
    opened = open_model(wanted.model, wanted.device, wanted.dtype, device_map, load_in_8bit, load_in_4bit)
    if wanted.hook_layer is not None:
        check_module_names(opened.model, wanted.hook_layer)
    circumstances = {
        **opened.circumstances,
        "facts": str(path),
        "limit": limit,
        "memory": wanted.settings.memory,
        "buckets": wanted.buckets,
    }
    identity = opened.identity | _identity(wanted, path, only_known=only_known)
    _trace(opened, plan, folder, identity, circumstances)
    _finish(folder, wanted.buckets)


def _over(config: TraceConfig, options: dict[str, Any], settings: dict[str, Any]) -> TraceConfig:
    """Lay what was given on the command line over what stands in a file."""
    given = {name: value for name, value in settings.items() if value is not None}
    chosen = {name: value for name, value in options.items() if value}
    return replace(config, settings=replace(config.settings, **given), **chosen)


def _check(wanted: TraceConfig) -> None:
    """Check what needs no model, before one is opened."""
    check_mediators(wanted.mediators)
    check_settings(wanted.settings)
    if wanted.rule not in RULES:
        raise InputError(unknown("rule", wanted.rule, RULES))
    if wanted.method not in METHODS:
        raise InputError(unknown("method", wanted.method, METHODS))


def _paths(wanted: TraceConfig, facts: Path | None, output: Path | None) -> tuple[Path, Path]:
    """Return the file of facts and the run folder."""
    if facts is None and wanted.data is None:
        raise InputError("no file of facts is given; use --facts, or the key data of --config")
    return facts or Path(str(wanted.data)), output or Path(wanted.output or "runs/trace")


def _identity(wanted: TraceConfig, facts: Path, *, only_known: bool) -> dict[str, Any]:
    """Return everything but the model that decides the numbers."""
    settings = wanted.settings
    return {
        "command": "trace",
        "facts_sha256": provenance.file_sha256(facts),
        "mediators": list(wanted.mediators),
        "method": wanted.method,
        "noise": str(settings.noise),
        "samples": settings.samples,
        "seed": settings.seed,
        "replace": settings.replace,
        "window": settings.window,
        "target": settings.target,
        "filter": only_known,
        "rule": wanted.rule,
    }


def _trace(
    opened: Opened,
    plan: TracePlan,
    folder: Path,
    identity: dict[str, Any],
    circumstances: dict[str, Any],
) -> None:
    """Trace what is pending, fact by fact, into the run folder."""
    units = plan.units
    with runs.open_run(folder, TraceCell, identity=identity, circumstances=circumstances, units=units) as run:
        finish_units(run, trace_runs.write_traces(run, opened.model, opened.tokenizer, plan), "Tracing", "facts")


def _finish(folder: Path, scheme: Scheme) -> None:
    """Write the peaks, show what was found, and tell what could not be traced."""
    rows = runs.read_table(folder, TraceCell)
    trace_runs.write_peaks(folder, rows)
    if rows:
        _show(rows, scheme)
    tell_dropped(folder, len(rows), "facts", "traced", (BAD_ROW, NOT_TRACED))


def _show(rows: Sequence[TraceCell], scheme: Scheme) -> None:
    """Show where effects are largest on average, and where in single facts: not the same place."""
    averages = Table("restored", "tokens", "layer", "AIE", "95% interval", "facts")
    single = Table("restored", "among", "AIE", "layer", "IE of single facts", "their layers")
    own = trace_tables.trace_peaks(rows)
    for mediator, traced in trace_tables.by_mediator(trace_tables.trace_grids(rows)).items():
        found = trace_tables.bucket_peaks(trace_tables.bucket_averages(traced, scheme=scheme), scheme=scheme)
        for peak in found:
            interval = f"{peak.low:+.3f} to {peak.high:+.3f}"
            averages.add_row(mediator, peak.bucket, str(peak.layer_idx), f"{peak.mean:+.3f}", interval, str(peak.n))
        averages.add_section()
        for among in (trace_tables.SUBJECT, trace_tables.ALL):
            there = [peak for peak in found if among == trace_tables.ALL or peak.bucket.endswith("_subject")]
            average = max(there, key=lambda peak: peak.mean)
            facts = [peak for peak in own if (peak.mediator, peak.among) == (mediator, among)]
            single.add_row(mediator, among, f"{average.mean:+.3f}", str(average.layer_idx), *_sum_up(facts))
    if words := trace_tables.estimated(trace_tables.trace_grids(rows)):
        out.print(f"Attention: {words}, whose sizes are not to be trusted; averages hold them too.")
    out.print("Average indirect effect (AIE) of each kind of token, at its peak layer:")
    out.print(averages)
    out.print(
        "Peaks of the average, and of single facts (mean of peaks.csv; median layer, and where half of them are):"
    )
    out.print(single)


def _sum_up(peaks: Sequence[TracePeak]) -> tuple[str, str]:
    """Say how large the peaks of single facts are, and in which layers: median and quartiles."""
    low, median, high = np.percentile([peak.layer_idx for peak in peaks], [25, 50, 75])
    size = np.mean([peak.indirect_effect for peak in peaks])
    return f"{size:+.3f}", f"{median:g} ({low:.0f} to {high:.0f})"
