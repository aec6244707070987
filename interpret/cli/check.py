"""``interpret check``: what is installed, and that surgery changes nothing where nothing is asked for."""

from typing import Annotated

import typer

from interpret.cli.console import out, tell
from interpret.cli.options import Loading
from interpret.errors import InterpretError
from interpret.storage import provenance


def check_command(
    *,
    model: Annotated[str, typer.Argument(help="'demo', a model folder, or a hub id.")] = "demo",
    loading: Loading,
) -> None:
    """Show what is installed, and that surgery changes nothing where nothing is asked for.

    interpret check demo
    """
    from interpret.surgery import selfcheck

    for name, value in {**provenance.versions(), "patch": selfcheck.patch_state()}.items():
        tell(f"{name:<16}{value}")
    lm, _ = loading.load(model)
    for name, value in selfcheck.features(lm).items():
        tell(f"{name:<16}{value}")
    worst = 0.0
    for result in selfcheck.comparisons(lm):
        worst = max(worst, result.difference)
        tell(f"{result.what:<58}largest difference {result.difference:g}")
    if worst > 0:
        raise InterpretError(
            f"surgery that asks for nothing changed this model's results by up to {worst:g}; 0 expected"
        )
    out.print("[green]everything is as in the stock model[/]")
