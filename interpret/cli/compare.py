"""``interpret compare``: the agreement of two traces of the same facts, from their run folders."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from interpret.cli.console import out, tell


def compare_command(
    run: Annotated[Path, typer.Argument(help="Run folder of 'interpret trace', for example an exact trace.")],
    other: Annotated[
        Path,
        typer.Argument(help="Run folder of another trace of the same facts, such as one with --method approximate."),
    ],
) -> None:
    """Compare two traces of the same facts: rank correlation of their indirect effects. No model is needed.

    interpret trace --facts examples/facts.json --limit 5 --method approximate --output runs/approximate

    interpret compare runs/trace runs/approximate

    For each mediator and metric, it prints the mean, the lowest and the highest rank correlation over facts, and for
    how many facts both traces have the largest effect at the same token and layer.
    """
    import numpy as np

    from interpret.facts.grids import FEWEST, not_finite
    from interpret.stats import rank_correlation
    from interpret.tracing.compare import grid_pairs, peak_of
    from interpret.tracing.mediators import mediator_of

    found = list(grid_pairs(run, other))
    named = [Column(name, no_wrap=True) for name in ("mediator", "metric")]
    table = Table(*named, "facts", "rank correlation, mean", "lowest", "highest", "same peak")
    for mediator, metric in dict.fromkeys((one.mediator, one.metric) for one, _ in found):
        of_one = [(one, two) for one, two in found if (one.mediator, one.metric) == (mediator, metric)]
        direction = mediator_of(mediator).direction(metric)
        pairs = [(direction * one.effects, direction * two.effects) for one, two in of_one]
        ranks = np.array([rank_correlation(*pair) for pair in pairs])
        same = sum(peak_of(one) == peak_of(two) for one, two in pairs)
        ranks = ranks[np.isfinite(ranks)]
        numbers = [f"{value:+.2f}" for value in (ranks.mean(), ranks.min(), ranks.max())] if ranks.size else [""] * 3
        table.add_row(mediator, metric, str(len(pairs)), *numbers, f"{same} of {len(pairs)}")
    out.print(table)
    if words := not_finite([grid for pair in found for grid in pair]):
        tell(words)
    if (n_facts := len({one.name for one, _ in found})) < FEWEST:
        tell(f"fewer than {FEWEST} facts are too few for a mean; here are {n_facts}")
    out.print("rank correlation: Spearman's, over all tokens and layers of a fact")
