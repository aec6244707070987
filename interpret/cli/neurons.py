"""``interpret probe neurons``: MLP neurons whose activation differs between true and false texts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpret.cli.console import MOST_SHOWN, say, show_table, tell, tell_more
from interpret.cli.options import Loading, Model, Output, WorkerOptions
from interpret.cli.work import tell_counts, tell_rows
from interpret.errors import InputError
from interpret.prompts.selectors import check_selector
from interpret.records import NeuronEffect

if TYPE_CHECKING:
    from interpret.facts.files import FactFile

FEWEST_PAIRS = 6
"""With fewer pairs, the smallest p-value of a sign-flip test, 2 / 2**pairs, is above 0.05."""
SIGNIFICANT = 0.05
"""False discovery rate at which neurons are counted as significant."""


def neurons_command(
    *,
    pairs: Annotated[
        Path | None,
        typer.Option(
            help="File of pairs of a true and a false text, such as examples/pairs.json: JSON, JSON Lines, CSV or TSV."
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --pairs: file of facts with foils. Prompt and answer are the true text, prompt and foil "
            "the false one."
        ),
    ] = None,
    output: Output = Path("runs/neurons"),
    model: Model = "demo",
    layers: Annotated[str, typer.Option(help="Layers to test: '3,7', '0:20:5', '-1' or 'all'.")] = "all",
    token: Annotated[
        str,
        typer.Option(
            help="How activations are reduced over a text: last (token), mean, max, or a position such as 0 or -2."
        ),
    ] = "last",
    permutations: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of permutations for the p-values; all are used if there are fewer."),
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Random seed of the permutations.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of texts per forward pass.")] = 8,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Find MLP neurons whose activation differs between true and false texts: one CSV row per neuron.

    interpret probe neurons --pairs examples/pairs.json

    The most significant neurons come first. q_value is the p-value adjusted for all neurons tested: of the neurons with
    q <= 0.05, at most one in twenty is expected to be a false discovery. With five pairs or fewer, p is at least
    0.0625, so no neuron can be significant; use about a hundred pairs.
    """
    from interpret.probing.knowledge_prober import not_tested
    from interpret.probing.neuron_runs import READING, run_neurons, token_of

    # Check everything that can be checked without the model first.
    texts, n_pairs = _texts(pairs, facts)
    token_of(token)
    check_selector("layer", layers)
    opened = loading.open(model, workers.asked(loading.imports))
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
    if words := not_tested(rows):
        say(words)
    show_table(
        f"The most significant of {len(rows)} neurons, from {n_pairs} pairs:",
        ("layer", "neuron", "true", "false", "Hedges' g", "p", "q"),
        map(_cells, rows[:MOST_SHOWN]),
    )
    tell_more(neurons=len(rows) - MOST_SHOWN)
    if n_pairs < FEWEST_PAIRS:
        say(f"{n_pairs} pairs are too few: no neuron can have p below {2 / 2**n_pairs:g}; use about a hundred")
    tell(f"{sum(row.q_value <= SIGNIFICANT for row in rows)} neurons have q <= {SIGNIFICANT}")
    if run.dropped or run.dropped_parts:
        tell_counts(READING, run)
    else:
        tell_rows(run.folder, len(rows))


def _cells(row: NeuronEffect) -> Sequence[str]:
    means = (f"{value:+.2f}" for value in (row.true_mean, row.false_mean, row.hedges_g))
    return (str(row.layer_idx), str(row.neuron), *means, f"{row.p_value:.2g}", f"{row.q_value:.2g}")


def _texts(pairs: Path | None, facts: Path | None) -> "tuple[Path | FactFile, int]":
    """Return the file of pairs, or the facts, and the number of pairs."""
    from interpret.facts.files import load_facts
    from interpret.facts.pairs import load_pairs, pairs_of_facts

    if pairs is not None and facts is None:
        return pairs, len(load_pairs(pairs))
    if facts is not None and pairs is None:
        file = load_facts(facts)
        found, skipped = pairs_of_facts(file)
        if skipped:
            say(f"skipped {skipped} rows of {facts} that are unreadable or have no foil")
        return file, len(found)
    raise InputError(
        "give either --pairs with a file of true and false texts or --facts with a file of facts that have foils"
    )
