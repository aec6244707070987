"""``interpret trace``: facts in, a run folder of causal traces out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from interpret.cli.console import out, show_table, tell
from interpret.cli.options import Chosen, Loading
from interpret.cli.work import tell_counts
from interpret.errors import InputError
from interpret.tracing.mediators import DEFAULT_MEDIATORS, MEDIATORS

if TYPE_CHECKING:
    from interpret.facts.buckets import Scheme
    from interpret.records import TracePeak
    from interpret.tracing.config import TraceConfig
    from interpret.tracing.tables import TraceGrid


@dataclass(frozen=True, kw_only=True)
class Given:
    """What options say of a trace; None where a configuration, or else the default, has its way."""

    model: Annotated[
        str | None, typer.Option(help="'demo', a model folder, or a hub id. [default: demo]", show_default=False)
    ] = None
    mediator: Annotated[
        list[str] | None,
        typer.Option(
            help="What is restored; may be given several times. "
            f"{'; '.join(f'{one.name}: {one.description}' for one in MEDIATORS.values())}. "
            f"[default: {', '.join(DEFAULT_MEDIATORS)}]"
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

    def over(self, config: "TraceConfig", rule: str | None, loading: Loading) -> "TraceConfig":
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
    from interpret.facts.files import load_facts
    from interpret.tracing import runs
    from interpret.tracing.config import TraceConfig, load_config
    from interpret.tracing.knowledge_tracing import check_module_names

    wanted = given.over(load_config(config) if config else TraceConfig(), chosen.rule, loading)
    path, folder = _paths(wanted, facts, output)
    # What needs no model is checked before one is opened.
    plan = runs.TracePlan(
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
    opened.recorded["circumstances"]["buckets"] = wanted.buckets
    run, traced, peaks = runs.run_plan(opened.model, opened.tokenizer, plan, folder, **opened.recorded)
    if traced:
        _show(traced, peaks, wanted.buckets)
    tell_counts(runs.TRACING, run)


def _paths(wanted: "TraceConfig", facts: Path | None, output: Path | None) -> tuple[Path, Path]:
    """Return the file of facts and the run folder."""
    if facts is None and wanted.data is None:
        raise InputError("no file of facts is given; use --facts, or the key data of --config")
    return facts or Path(str(wanted.data)), output or Path(wanted.output or "runs/trace")


def _show(traced: "Sequence[TraceGrid]", peaks: "Sequence[TracePeak]", scheme: "Scheme") -> None:
    """Show where effects are largest on average, and where in single facts: not the same place."""
    from interpret.facts.grids import bucket_averages, bucket_peaks, by_part
    from interpret.tracing import tables

    if words := tables.estimated(traced):
        tell(f"Attention: {words}, whose sizes are not to be trusted; averages hold them too.")
    averages = Table("restored", "tokens", "layer", "AIE", "95% interval", "facts")
    single: list[Sequence[str]] = []
    for mediator, of_one in by_part(traced, "mediator").items():
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


def _sum_up(peaks: "Sequence[TracePeak]") -> tuple[str, str]:
    """Say how large the peaks of single facts are, and in which layers: median and quartiles."""
    import numpy as np

    low, median, high = np.percentile([peak.layer_idx for peak in peaks], [25, 50, 75])
    size = np.mean([peak.indirect_effect for peak in peaks])
    return f"{size:+.3f}", f"{median:g} ({low:.0f} to {high:.0f})"
