"""``interpret probe neurons``: true and false texts in, what each MLP neuron makes of them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from interpret.anatomy import anatomy_of
from interpret.cli.console import MOST_SHOWN, say, show_table, tell
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import Work, do_units, tell_rows
from interpret.errors import InputError, unknown
from interpret.facts.pairs import load_pairs, pairs_of_facts
from interpret.probing.neuron_runs import NeuronPlan, check_plan, write_neurons
from interpret.probing.neurons import CHOICES, Token
from interpret.prompts import selectors
from interpret.records import NeuronEffect
from interpret.storage import provenance, run_folder

READING = Work("Reading", "read", "parts")
SURE = 0.05
"""The false discovery rate at which neurons are counted at the end."""


def neurons_command(
    *,
    pairs: Annotated[
        Path | None, typer.Option(help="JSON file with pairs of a true and a false text, as examples/pairs.json.")
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(help="Instead: file of facts with foils; prompt and answer are true, with foil false."),
    ] = None,
    output: Output = Path("runs/neurons"),
    model: Model = "demo",
    layers: Annotated[str, typer.Option(help="'3,7', '0:20:5', '-1' or 'all'.")] = "all",
    token: Annotated[
        str, typer.Option(help="Where in a text a neuron is read: last, mean, max, or a position such as 0 or -2.")
    ] = "last",
    permutations: Annotated[
        int, typer.Option(min=1, help="How many permutations of the pairs a p-value is from, at most.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the permutations.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts read side by side.")] = 8,
    loading: Loading,
) -> None:
    """Tell which MLP neurons say something else about true texts than about false ones: a CSV row a neuron.

    interpret probe neurons --pairs examples/pairs.json

    The surest come first. q_value is adjusted for all neurons tested, so that of those below 0.05 about one in twenty
    is false; below a dozen pairs nothing can be found.
    """
    texts, source = _texts(pairs, facts)
    where = _token(token)
    opened = loading.open(model)
    chosen = selectors.select("layer", layers, len(anatomy_of(opened.model).layers))
    plan = NeuronPlan(texts, chosen, where, permutations, seed, batch_size)
    check_plan(opened.tokenizer, plan)
    asked = {
        "command": "probe neurons",
        "texts_sha256": provenance.file_sha256(source),
        "layers": layers,
        "token": token,
        "permutations": permutations,
        "seed": seed,
    }
    do_units(
        READING,
        output,
        NeuronEffect,
        lambda run: write_neurons(run, opened.model, opened.tokenizer, plan),
        units=plan.units,
        identity=opened.identity | asked,
        circumstances={**opened.circumstances, "texts": str(source), "batch_size": batch_size},
    )
    rows = run_folder.read_table(output, NeuronEffect)
    show_table(
        f"The surest of {len(rows)} neurons, {len(texts)} pairs:",
        ("layer", "neuron", "true", "false", "Hedges' g", "p", "q"),
        map(_cells, rows[:MOST_SHOWN]),
    )
    tell(f"{sum(row.q_value <= SURE for row in rows)} neurons have q <= {SURE}")
    tell_rows(output, len(rows))


def _cells(row: NeuronEffect) -> Sequence[str]:
    means = (f"{value:+.2f}" for value in (row.true_mean, row.false_mean, row.hedges_g))
    return (str(row.layer), str(row.neuron), *means, f"{row.p_value:.2g}", f"{row.q_value:.2g}")


def _texts(pairs: Path | None, facts: Path | None) -> tuple[list[tuple[str, str]], Path]:
    """Return the pairs of texts, and the file they are from."""
    if pairs is not None and facts is None:
        return load_pairs(pairs), pairs
    if facts is not None and pairs is None:
        found, left_out = pairs_of_facts(facts)
        if left_out:
            say(f"{left_out} rows of {facts} have no foil or are wrong, and are left out")
        return found, facts
    raise InputError("give --pairs with a file of true and false texts, or --facts with facts that have foils")


def _token(words: str) -> Token:
    """Read 'last', or a position."""
    if words in CHOICES:
        return cast(Token, words)
    try:
        return int(words)
    except ValueError:
        raise InputError(unknown("token", words, [*CHOICES, "a position such as 0 or -2"])) from None
