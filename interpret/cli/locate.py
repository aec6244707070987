"""``interpret locate``: facts in, a run folder of what each activation does to their answers out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from interpret import location_runs, provenance, runs
from interpret.attribution.functions import attributed_function
from interpret.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Eight,
    Four,
    Model,
    finish_units,
    open_model,
    out,
    tell_dropped,
)
from interpret.errors import InputError, unknown
from interpret.fact_files import load_facts
from interpret.fact_runs import BAD_ROW
from interpret.knowledge import RULES, Rule
from interpret.location_runs import NOT_LOCATED, LocationPlan
from interpret.location_tables import location_averages, location_grids
from interpret.locations import CONTRAST, location_plan
from interpret.records import LocationCell
from interpret.trace_tables import bucket_peaks


def locate_command(
    facts: Annotated[
        Path,
        typer.Option(help="File of facts with foils, as CounterFact; examples/facts.json shows the formats."),
    ],
    output: Annotated[
        Path, typer.Option(help="Run folder: table.csv, manifest.json. The same command continues it.")
    ] = Path("runs/locations"),
    model: Model = "demo",
    attributed_fn: Annotated[
        str,
        typer.Option(
            help="contrast_prob_diff: P(answer) - P(foil) of their first tokens, which facts without a foil do not "
            "have; or a function of the answer alone, such as probability or logit."
        ),
    ] = CONTRAST,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Locate the first facts only; a higher limit continues the run.")
    ] = None,
    only_known: Annotated[
        bool, typer.Option("--filter/--no-filter", help="Drop the facts the model does not know.")
    ] = True,
    rule: Annotated[
        str,
        typer.Option(
            help="words: what the model writes starts with the answer's words; or first_token, as in ROME.",
        ),
    ] = "words",
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Locate facts by attribution: one CSV row a fact, site, token and layer, and averages by kind of token at the end.

    Faster than 'interpret trace' by far, one forward and one backward pass a fact, and true to the first order only.
    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some facts could not be located.
    """
    function = attributed_function(attributed_fn)
    plan = LocationPlan(load_facts(facts), limit=limit, only_known=only_known, rule=_rule(rule), attributed_fn=function)
    opened = open_model(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    # What is wrong for every fact is said before a folder is made.
    location_plan(opened.model, opened.tokenizer, function)
    identity = {
        "command": "locate",
        **opened.identity,
        "facts_sha256": provenance.file_sha256(facts),
        "attributed_fn": function,
        "filter": only_known,
        "rule": rule,
    }
    circumstances = {**opened.circumstances, "facts": str(facts), "limit": limit}
    with runs.open_run(output, LocationCell, identity=identity, circumstances=circumstances, units=plan.units) as run:
        located = location_runs.write_locations(run, opened.model, opened.tokenizer, plan)
        finish_units(run, located, "Locating", "facts")
    rows = runs.read_table(output, LocationCell)
    if rows:
        _show(rows)
    tell_dropped(output, len(rows), "facts", "located", (BAD_ROW, NOT_LOCATED))


def _rule(name: str) -> Rule:
    """Check the name of a rule."""
    for rule in RULES:
        if rule == name:
            return rule
    raise InputError(unknown("rule", name, RULES))


def _show(rows: Sequence[LocationCell]) -> None:
    """Show where the scores of each kind of token are largest on average."""
    table = Table("site", "tokens", "layer", "score", "95% interval", "facts")
    for site, averages in location_averages(location_grids(rows)).items():
        for peak in bucket_peaks(averages):
            interval = f"{peak.low:+.3f} to {peak.high:+.3f}"
            table.add_row(site, peak.bucket, str(peak.layer_idx), f"{peak.mean:+.3f}", interval, str(peak.n))
        table.add_section()
    out.print(f"Mean score ({rows[0].attributed_fn}) of each kind of token, at the layer where it is largest:")
    out.print(table)
