"""``interpret locate``: score the activations of a model by how much they support the answers of facts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from interpret.cli.console import out, peak_cells, tell
from interpret.cli.options import FactOptions, Loading, Model, WorkerOptions, output_option
from interpret.cli.sources import ContrastedFacts
from interpret.cli.work import tell_counts

if TYPE_CHECKING:
    from interpret.locating.tables import LocationGrid


def locate_command(
    *,
    fact: ContrastedFacts,
    output: Annotated[Path | None, output_option("locations")] = None,
    model: Model = "demo",
    attributed_fn: Annotated[
        str,
        typer.Option(
            help="The function to attribute. contrast_prob_diff: P(answer) - P(foil) of their first tokens; facts "
            "without a foil are dropped. Or a function of the answer alone, such as probability or logit."
        ),
    ] = "contrast_prob_diff",
    chosen: FactOptions,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Find the tokens and layers that store facts by attribution: one CSV row per fact, site, token and layer.

    interpret locate --prompt "The capital of France is" --subject France --target Paris --foil Rome

    Each activation is scored by gradient times activation. This needs one forward and one backward pass per fact, much
    less than 'interpret trace', but it is only a first-order approximation. Average scores are printed at the end.

    A run can be stopped at any time; the same command resumes it. Exit code 3: finished, but some facts could not be
    located.
    """
    from interpret.facts.runs import rule_of
    from interpret.locating import runs
    from interpret.locating.tables import location_grids

    # Check everything that can be checked without the model first.
    rule = rule_of(chosen.rule or "words")
    plan = runs.LocationPlan(fact.read(), chosen.limit, chosen.only_known, rule, attributed_fn, fact.chat_template)
    opened = loading.open(model, workers.asked(loading.imports))
    run = runs.run(
        opened.model,
        opened.tokenizer,
        plan.facts,
        fact.folder("runs/locations", output, model, attributed_fn, chosen, loading),
        attributed_fn=plan.attributed_fn,
        limit=chosen.limit,
        only_known=chosen.only_known,
        rule=plan.rule,
        chat_template=plan.chat_template,
        **opened.recorded,
    )
    if grids := [grid for rows in run.by_unit() for grid in location_grids(rows)]:
        _show(plan.attributed_fn, grids)
    tell_counts(runs.LOCATING, run)


def _show(function: str, grids: "Sequence[LocationGrid]") -> None:
    """Print, for each site and kind of token, the layer with the largest mean score."""
    from interpret.facts.grids import bucket_peaks, too_few
    from interpret.locating.tables import location_averages

    table = Table("site", "tokens", "layer", "score", "95% interval", "facts")
    shown = []
    for site, averages in location_averages(grids).items():
        for peak in bucket_peaks(averages):
            shown.append(peak)
            table.add_row(site, *peak_cells(peak))
        table.add_section()
    out.print(f"Mean score ({function}) for each kind of token, at its peak layer:")
    out.print(table)
    if words := too_few(shown):
        tell(words)
