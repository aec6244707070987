"""``interpret probe neurons``: true and false texts in, what each MLP neuron makes of them out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.cli.console import MOST_SHOWN, say, show_table, tell
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import tell_rows
from interpret.errors import InputError
from interpret.records import NeuronEffect

if TYPE_CHECKING:
    from interpret.facts.files import FactFile

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
    from interpret.probing.neuron_runs import run_neurons, token_of

    # What needs no model is checked before one is opened.
    texts, n_pairs = _texts(pairs, facts)
    token_of(token)
    opened = loading.open(model)
    run = run_neurons(
        opened.model,
        opened.tokenizer,
        texts,
        output,
        layers=layers,
        token=token,
        permutations=permutations,
        seed=seed,
        batch_size=batch_size,
        **opened.recorded,
    )
    rows: list[NeuronEffect] = run.records()
    show_table(
        f"The surest of {len(rows)} neurons, {n_pairs} pairs:",
        ("layer", "neuron", "true", "false", "Hedges' g", "p", "q"),
        map(_cells, rows[:MOST_SHOWN]),
    )
    tell(f"{sum(row.q_value <= SURE for row in rows)} neurons have q <= {SURE}")
    tell_rows(run.folder, len(rows))


def _cells(row: NeuronEffect) -> Sequence[str]:
    means = (f"{value:+.2f}" for value in (row.true_mean, row.false_mean, row.hedges_g))
    return (str(row.layer_idx), str(row.neuron), *means, f"{row.p_value:.2g}", f"{row.q_value:.2g}")


def _texts(pairs: Path | None, facts: Path | None) -> "tuple[Path | FactFile, int]":
    """Return the file of pairs, or the facts, and how many pairs there are."""
    from interpret.facts.files import load_facts
    from interpret.facts.pairs import load_pairs, pairs_of_facts

    if pairs is not None and facts is None:
        return pairs, len(load_pairs(pairs))
    if facts is not None and pairs is None:
        file = load_facts(facts)
        found, left_out = pairs_of_facts(file)
        if left_out:
            say(f"{left_out} rows of {facts} have no foil or are wrong, and are left out")
        return file, len(found)
    raise InputError("give --pairs with a file of true and false texts, or --facts with facts that have foils")
