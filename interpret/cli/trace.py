"""``interpret trace``: facts in, a run folder of causal traces out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from interpret.cli.console import choice, out, show_table, tell
from interpret.cli.options import Chosen, Loading
from interpret.cli.work import Work, do_units, tell_counts
from interpret.errors import InputError
from interpret.facts.buckets import Scheme
from interpret.facts.files import load_facts
from interpret.facts.filter import RULES
from interpret.facts.grids import bucket_averages, bucket_peaks
from interpret.facts.runs import BAD_ROW
from interpret.records import TraceCell, TracePeak
from interpret.storage import provenance
from interpret.tracing import runs, tables
from interpret.tracing.config import METHODS, TraceConfig, load_config
from interpret.tracing.inputs import check_settings
from interpret.tracing.knowledge_tracing import check_module_names
from interpret.tracing.mediators import check_mediators
from interpret.tracing.runs import NOT_TRACED, TracePlan

TRACING = Work("Tracing", "traced", "facts", (BAD_ROW, NOT_TRACED))


@dataclass(frozen=True, kw_only=True)
class Given:
    """What options say of a trace; None where a configuration, or else the default, has its way."""

    model: Annotated[
        str | None, typer.Option(help="'demo', a model folder, or a hub id. [default: demo]", show_default=False)
    ] = None
    mediator: Annotated[
        list[str] | None,
        typer.Option(
            help="What is restored: hidden, attn_severed, mlp_severed, attn_window or mlp_window; may be given "
            "several times. [default: hidden, attn_severed, mlp_severed]"
        ),
    ] = None
    noise: Annotated[
        str | None,
        typer.Option(
            help="s3: Gaussian, 3 standard deviations of the embeddings of the subjects of the whole file, as in ROME; "
            "or a number, u0.5, m, t3. [default: s3]"
        ),
    ] = None
    samples: Annotated[int | None, typer.Option(min=1, help="Draws of noise. [default: 10]")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Of the noise. [default: 0]")] = None
    replace_embeddings: Annotated[
        bool | None,
        typer.Option(
            "--replace/--add", help="Put the noise in place of the embeddings, or add it to them. [default: --add]"
        ),
    ] = None
    window: Annotated[int | None, typer.Option(min=1, help="Layers of the windows. [default: 10]")] = None
    target: Annotated[
        str | None, typer.Option(help="first or whole: the answer's tokens that are read. [default: first]")
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            help="exact: every cell run; approximate: estimated from gradients; or screened: estimated, and the tenth "
            "that looks largest run. [default: exact]"
        ),
    ] = None

    def over(self, config: TraceConfig, rule: str | None, loading: Loading) -> TraceConfig:
        """Lay what was given on the command line over what stands in a file."""
        settings = {
            "noise": self.noise,
            "samples": self.samples,
            "seed": self.seed,
            "replace": self.replace_embeddings,
            "window": self.window,
            "target": self.target,
        }
        others = {
            "model": self.model,
            "mediators": tuple(self.mediator) if self.mediator else None,
            "method": self.method,
            "rule": rule,
            "device": loading.device,
            "dtype": loading.dtype,
        }
        return replace(config, settings=replace(config.settings, **_said(settings)), **_said(others))


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def trace_command(
    *,
    facts: Annotated[
        Path | None,
        typer.Option(help="File of facts, as known_1000.json or CounterFact; examples/facts.json shows both."),
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
    given: Given,
    chosen: Chosen,
    loading: Loading,
) -> None:
    """Trace where a model keeps facts: one CSV row a fact, mediator, token and layer, and average effects at the end.

    interpret trace --facts examples/facts.json --limit 5

    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some facts could not be traced.
    """
    wanted = given.over(load_config(config) if config else TraceConfig(), chosen.rule, loading)
    _check(wanted)
    path, folder = _paths(wanted, facts, output)
    plan = TracePlan(
        load_facts(path),
        limit=chosen.limit,
        mediators=wanted.mediators,
        settings=wanted.settings,
        method=wanted.method,
        only_known=chosen.only_known,
        rule=wanted.rule,
    )
    opened = replace(loading, device=wanted.device, dtype=wanted.dtype).open(wanted.model)
    if wanted.hook_layer is not None:
        check_module_names(opened.model, wanted.hook_layer)
    circumstances = {"facts": str(path), "limit": chosen.limit, "memory": wanted.settings.memory}
    do_units(
        TRACING,
        folder,
        TraceCell,
        lambda run: runs.write_traces(run, opened.model, opened.tokenizer, plan),
        units=plan.units,
        identity=opened.identity | _identity(plan, path),
        circumstances={**opened.circumstances, **circumstances, "buckets": wanted.buckets},
    )
    _show(folder, wanted.buckets)
    tell_counts(TRACING, folder)


def _check(wanted: TraceConfig) -> None:
    """Check what needs no model, before one is opened."""
    check_mediators(wanted.mediators)
    check_settings(wanted.settings)
    choice("rule", wanted.rule, RULES)
    choice("method", wanted.method, METHODS)


def _paths(wanted: TraceConfig, facts: Path | None, output: Path | None) -> tuple[Path, Path]:
    """Return the file of facts and the run folder."""
    if facts is None and wanted.data is None:
        raise InputError("no file of facts is given; use --facts, or the key data of --config")
    return facts or Path(str(wanted.data)), output or Path(wanted.output or "runs/trace")


def _identity(plan: TracePlan, facts: Path) -> dict[str, Any]:
    """Return everything but the model that decides the numbers."""
    settings = plan.settings
    return {
        "command": "trace",
        "facts_sha256": provenance.file_sha256(facts),
        "mediators": list(plan.mediators),
        "method": plan.method,
        "noise": str(settings.noise),
        "samples": settings.samples,
        "seed": settings.seed,
        "replace": settings.replace,
        "window": settings.window,
        "target": settings.target,
        "filter": plan.only_known,
        "rule": plan.rule,
    }


def _show(folder: Path, scheme: Scheme) -> None:
    """Show where effects are largest on average, and where in single facts: not the same place."""
    traced, peaks = runs.write_peaks(folder)
    if not traced:
        return
    if words := tables.estimated(traced):
        tell(f"Attention: {words}, whose sizes are not to be trusted; averages hold them too.")
    averages = Table("restored", "tokens", "layer", "AIE", "95% interval", "facts")
    single: list[Sequence[str]] = []
    for mediator, of_one in tables.by_mediator(traced).items():
        found = bucket_peaks(bucket_averages(of_one, scheme=scheme), scheme=scheme)
        for peak in found:
            interval = f"{peak.low:+.3f} to {peak.high:+.3f}"
            averages.add_row(mediator, peak.bucket, str(peak.layer_idx), f"{peak.mean:+.3f}", interval, str(peak.n))
        averages.add_section()
        for among in (tables.SUBJECT, tables.ALL):
            there = [peak for peak in found if among == tables.ALL or peak.bucket.endswith("_subject")]
            average = max(there, key=lambda peak: peak.mean)
            of_facts = [peak for peak in peaks if (peak.mediator, peak.among) == (mediator, among)]
            single.append((mediator, among, f"{average.mean:+.3f}", str(average.layer_idx), *_sum_up(of_facts)))
    out.print("Average indirect effect (AIE) of each kind of token, at its peak layer:")
    out.print(averages)
    show_table(
        "Peaks of the average, and of single facts (mean of peaks.csv; median layer, and where half of them are):",
        ("restored", "among", "AIE", "layer", "IE of single facts", "their layers"),
        single,
    )


def _sum_up(peaks: Sequence[TracePeak]) -> tuple[str, str]:
    """Say how large the peaks of single facts are, and in which layers: median and quartiles."""
    low, median, high = np.percentile([peak.layer_idx for peak in peaks], [25, 50, 75])
    size = np.mean([peak.indirect_effect for peak in peaks])
    return f"{size:+.3f}", f"{median:g} ({low:.0f} to {high:.0f})"
