"""``interpret locate``: facts in, a run folder of what each activation does to their answers out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from interpret.cli.console import out
from interpret.cli.options import Chosen, Loading, Model, Output
from interpret.cli.work import tell_counts

if TYPE_CHECKING:
    from interpret.locating.tables import LocationGrid


def locate_command(
    *,
    facts: Annotated[
        Path,
        typer.Option(help="File of facts with foils, as CounterFact; examples/facts.json shows the formats."),
    ],
    output: Output = Path("runs/locations"),
    model: Model = "demo",
    attributed_fn: Annotated[
        str,
        typer.Option(
            help="contrast_prob_diff: P(answer) - P(foil) of their first tokens, which facts without a foil do not "
            "have; or a function of the answer alone, such as probability or logit."
        ),
    ] = "contrast_prob_diff",
    chosen: Chosen,
    loading: Loading,
) -> None:
    """Locate facts by attribution: one CSV row a fact, site, token and layer, and averages by kind of token at the end.

    interpret locate --facts examples/facts.json

    Faster than 'interpret trace' by far, one forward and one backward pass a fact, and true to the first order only.
    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some facts could not be located.
    """
    from interpret.facts.files import load_facts
    from interpret.facts.runs import rule_of
    from interpret.locating import runs
    from interpret.locating.tables import location_grids

    # What needs no model is checked before one is opened.
    rule = rule_of(chosen.rule or "words")
    plan = runs.LocationPlan(load_facts(facts), chosen.limit, chosen.only_known, rule, attributed_fn)
    opened = loading.open(model)
    run = runs.run(
        opened.model,
        opened.tokenizer,
        plan.facts,
        output,
        attributed_fn=plan.attributed_fn,
        limit=chosen.limit,
        only_known=chosen.only_known,
        rule=plan.rule,
        **opened.recorded,
    )
    if grids := [grid for rows in run.by_unit() for grid in location_grids(rows)]:
        _show(plan.attributed_fn, grids)
    tell_counts(runs.LOCATING, run)


def _show(function: str, grids: "Sequence[LocationGrid]") -> None:
    """Show where the scores of each kind of token are largest on average."""
    from interpret.facts.grids import bucket_peaks
    from interpret.locating.tables import location_averages

    table = Table("site", "tokens", "layer", "score", "95% interval", "facts")
    for site, averages in location_averages(grids).items():
        for peak in bucket_peaks(averages):
            interval = f"{peak.low:+.3f} to {peak.high:+.3f}"
            table.add_row(site, peak.bucket, str(peak.layer_idx), f"{peak.mean:+.3f}", interval, str(peak.n))
        table.add_section()
    out.print(f"Mean score ({function}) of each kind of token, at the layer where it is largest:")
    out.print(table)
