"""``interpret trace``: causal tracing of the facts in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from interpret.cli.console import out, peak_cells, say, show_table, signed, tell
from interpret.cli.options import FactOptions, Loading, WorkerOptions, output_option
from interpret.cli.sources import Framing, TracedFacts
from interpret.cli.work import tell_counts
from interpret.errors import InputError
from interpret.tracing.mediators import DEFAULT_MEDIATORS, MEDIATORS, UNIT_MEDIATORS, mediator_of

if TYPE_CHECKING:
    from interpret.facts.buckets import Scheme
    from interpret.facts.grids import BucketMean
    from interpret.records import TracePeak, UnitCell
    from interpret.tracing.config import TraceConfig
    from interpret.tracing.tables import TraceGrid


MOST_UNITS = 10
"""Number of heads and of neurons that are printed."""


def _described() -> dict[str, str]:
    """Return the descriptions of all mediators."""
    return {one.name: one.description for one in MEDIATORS.values()} | UNIT_MEDIATORS


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Options of a trace; None for the value in the configuration file, or else the default."""

    model: Annotated[
        str | None,
        typer.Option(
            help="'demo' (SmolLM2-135M-Instruct), a model folder, or a Hugging Face hub id. [default: demo]",
            show_default=False,
        ),
    ] = None
    mediator: Annotated[
        list[str] | None,
        typer.Option(
            help="What is restored or knocked out at each token and layer; may be given several times. "
            f"{'; '.join(f'{name}: {words}' for name, words in _described().items())}. "
            f"[default: {', '.join(DEFAULT_MEDIATORS)}]"
        ),
    ] = None
    noise: Annotated[
        str | None,
        typer.Option(
            help="Noise on the embeddings of the subject. s3: Gaussian, 3 standard deviations of the embeddings of all "
            "subjects in the file, as in ROME; a number: Gaussian with this standard deviation; u0.5: uniform between "
            "-0.5 and 0.5; m: Gaussian with mean and covariance of the embeddings of the vocabulary; t3: Student's t "
            "with 3 degrees of freedom and these mean and covariance. [default: s3]"
        ),
    ] = None
    samples: Annotated[int | None, typer.Option(min=1, help="Number of noise samples per fact. [default: 10]")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed of the noise. [default: 0]")] = None
    replace_embeddings: Annotated[
        bool | None,
        typer.Option(
            "--replace/--add", help="Replace the subject's embeddings by the noise, or add it to them. [default: --add]"
        ),
    ] = None
    window: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of layers that attn_window, mlp_window and attn_knockout change together. [default: 10]"
        ),
    ] = None
    answer_tokens: Annotated[
        str | None,
        typer.Option(
            help="first: measure the probability of the first token of the answer; whole: that of the whole answer. "
            "[default: first]"
        ),
    ] = None
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="What is measured of the answer: probability, log_probability, logit, logit_difference (answer minus "
            "foil) or rank; may be given several times, and is read off the same runs. [default: probability]"
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            help="exact: every restoration is run; approximate: effects are estimated from gradients (attribution "
            "patching), much faster; relp: from relevance in place of gradients (RelP); screened: effects are "
            "estimated, and the tenth of the cells from the subject on with the largest estimates is run. "
            "[default: exact]"
        ),
    ] = None

    def override(self, config: "TraceConfig", framing: Framing, chosen: FactOptions, loading: Loading) -> "TraceConfig":
        """Return a configuration in which the given options replace the values of a file."""
        settings = {
            "noise": self.noise,
            "samples": self.samples,
            "seed": self.seed,
            "replace": self.replace_embeddings,
            "window": self.window,
            "answer_tokens": self.answer_tokens,
            "chat_template": framing.chat_template,
        }
        others = {
            "model": self.model,
            "name": self.model and Path(self.model).name,
            "mediators": tuple(self.mediator) if self.mediator else None,
            "method": self.method,
            "metrics": tuple(self.metric) if self.metric else None,
            "rule": chosen.rule,
            "device": loading.device,
            "dtype": loading.dtype,
        }
        new = replace(config.settings, **_given(settings))
        return replace(config, settings=replace(new, chat_template=None) if framing.raw else new, **_given(others))


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def trace_command(
    *,
    fact: TracedFacts,
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of settings such as examples/trace.yaml, or a configuration file of Knowledge-Tracing; "
            "options on the command line override it."
        ),
    ] = None,
    output: Annotated[Path | None, output_option("trace", "table.csv, peaks.csv, grids/ and manifest.json")] = None,
    given: TraceOptions,
    chosen: FactOptions,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Find the tokens and layers that store facts by causal tracing: one CSV row per fact, mediator, token and layer.

    interpret trace --prompt "The capital of France is" --subject France --target Paris

    For each fact, noise on the embeddings of the subject makes the model lose the answer; then activations are restored
    to their clean values, one at a time. The indirect effect of an activation is how much its restoration raises the
    probability of the answer (ROME, Meng et al. 2022). Average effects are printed at the end.

    A run can be stopped at any time; the same command resumes it. Exit code 3: finished, but some facts could not be
    traced.
    """
    from interpret.records import UnitCell
    from interpret.storage.run_folder import read_table
    from interpret.tracing import runs
    from interpret.tracing.config import TraceConfig, load_config
    from interpret.tracing.knowledge_tracing import row_names, write_lists

    wanted = given.override(load_config(config) if config else TraceConfig(), fact, chosen, loading)
    if fact.foil is not None and "logit_difference" not in (wanted.metrics or [wanted.settings.metric]):
        raise InputError("--foil is only read by --metric logit_difference; add it, or leave out --foil")
    folder = fact.folder(wanted.output or "runs/trace", output, wanted, chosen, loading)
    # Check everything that can be checked without the model first.
    asked = workers.asked(loading.imports, **wanted.workers)
    plan = runs.TracePlan(
        fact.read(wanted.data),
        limit=chosen.limit,
        mediators=wanted.mediators,
        settings=wanted.settings,
        method=wanted.method,
        metrics=wanted.metrics,
        only_known=chosen.only_known,
        rule=wanted.rule,
        module_names=wanted.hook_layer,
    )
    opened = replace(loading, device=wanted.device, dtype=wanted.dtype).open(wanted.model, asked)
    opened.recorded["circumstances"] |= {"buckets": wanted.buckets, "name": wanted.name}
    run, traced, peaks = runs.run_plan(opened.model, opened.tokenizer, plan, folder, **opened.recorded)
    if traced:
        _show(traced, peaks, wanted.buckets)
    if traced and wanted.hook_layer is not None:
        count = write_lists(traced, row_names(plan.facts), folder.parent, wanted.name)
        say(f"{folder.parent / wanted.name}-*.pt: {count} files in the format of Knowledge-Tracing")
    if (units := run.folder / runs.UNITS_TABLE).is_file():
        _show_units(read_table(units, UnitCell))
    tell_counts(runs.TRACING, run)


def _show(traced: "Sequence[TraceGrid]", peaks: "Sequence[TracePeak]", scheme: "Scheme") -> None:
    """Print where the average effects peak, and where the effects of single facts peak, metric by metric."""
    from interpret.facts.grids import BucketMean, by_part, too_few
    from interpret.tracing import tables

    if words := tables.estimated(traced):
        tell(f"Warning: {words}; their sizes are unreliable, and the averages include them.")
    shown: list[BucketMean] = []
    for metric, of_metric in by_part(traced, "metric").items():
        shown += _show_metric(metric, of_metric, [peak for peak in peaks if peak.metric == metric], scheme)
    if words := too_few(shown):
        tell(words)


def _show_metric(
    metric: str, traced: "Sequence[TraceGrid]", peaks: "Sequence[TracePeak]", scheme: "Scheme"
) -> "list[BucketMean]":
    """Print where the effects on one metric peak, and return the averages that were printed.

    The peaks of the averages may differ from those of single facts.
    """
    from interpret.facts.grids import BucketMean, bucket_averages, bucket_peaks, by_part
    from interpret.tracing import tables

    averages = Table(Column("mediator", overflow="fold"), "tokens", "layer", "AIE", "95% interval", "facts")
    single: list[Sequence[str]] = []
    shown: list[BucketMean] = []
    for mediator, of_one in by_part(traced, "mediator").items():
        direction = mediator_of(mediator).direction(metric)
        found = bucket_peaks(bucket_averages(of_one, scheme=scheme), scheme=scheme, direction=direction)
        for peak in found:
            averages.add_row(mediator, *peak_cells(peak))
        shown += found
        averages.add_section()
        for among in (tables.SUBJECT, tables.ALL):
            there = [peak for peak in found if among == tables.ALL or peak.bucket.endswith("_subject")]
            if not there:
                continue
            average = max(there, key=lambda peak: direction * peak.mean)
            of_facts = [peak for peak in peaks if (peak.mediator, peak.among) == (mediator, among)]
            single.append((mediator, among, signed(average.mean), str(average.layer_idx), *_sum_up(of_facts)))
    measured = tables.metric_of(metric)
    out.print(f"Average indirect effect (AIE) on {measured} for each kind of token, at its peak layer:")
    out.print(averages)
    show_table(
        f"Peaks of the average on {measured}, and peaks of single facts from peaks.csv (mean effect; median and "
        "quartiles of layers):",
        ("mediator", "among", "AIE", "layer", "IE of single facts", "layer of single facts"),
        single,
    )
    return shown


def _show_units(rows: "Sequence[UnitCell]") -> None:
    """Print the heads and neurons with the largest average effects."""
    from interpret.facts.grids import BucketMean, too_few
    from interpret.stats import average
    from interpret.tracing.tables import metric_of, unit_means

    means = unit_means(rows)
    for mediator, metric in dict.fromkeys((row.mediator, row.metric) for row in rows):
        shown = []
        for one in [one for one in means if (one.mediator, one.metric) == (mediator, metric)][:MOST_UNITS]:
            found, n_facts = average(one.effects), len(one.effects)
            interval = f"{signed(float(found.low))} to {signed(float(found.high))}" if n_facts > 1 else ""
            place = f"{one.layer_idx}.{one.unit}", one.bucket
            shown.append((*place, f"{one.mean:+.4f}", interval, f"{one.n} of {n_facts}"))
        show_table(
            f"{mediator.capitalize()} with the largest average indirect effects on {metric_of(metric)}:",
            (f"layer.{mediator[:-1]}", "token", "AIE", "95% interval", "facts"),
            shown,
        )
    if words := too_few([BucketMean(one.bucket, one.layer_idx, one.mean, 0.0, 0.0, len(one.effects)) for one in means]):
        tell(words)


def _sum_up(peaks: "Sequence[TracePeak]") -> tuple[str, str]:
    """Return the mean effect at the peaks of single facts, and the median and quartiles of their layers."""
    import numpy as np

    if not peaks:
        return "", ""
    low, median, high = np.percentile([peak.layer_idx for peak in peaks], [25, 50, 75])
    size = float(np.mean([peak.indirect_effect for peak in peaks]))
    return signed(size), f"{median:g} ({low:.0f} to {high:.0f})"
