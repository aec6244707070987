"""``interpret check``: show versions, and check that surgery without edits does not change a model's outputs."""

from typing import Annotated

import typer

from interpret.cli.console import out, tell
from interpret.cli.options import Loading
from interpret.errors import InterpretError
from interpret.storage import provenance


def check_command(
    *,
    model: Annotated[
        str, typer.Argument(help="'demo' (SmolLM2-135M-Instruct), a model folder, or a Hugging Face hub id.")
    ] = "demo",
    loading: Loading,
) -> None:
    """Show versions, and check that surgery without edits does not change a model's outputs.

    interpret check demo

    Compares the functions of the stock model with the surgery functions, once with no edit and once with an identity
    edit (of strength 0 in every layer). All differences must be exactly 0; otherwise the exit code is 2.
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
        raise InterpretError(f"surgery without edits changed the outputs of this model by up to {worst:g}; expected 0")
    out.print("[green]all outputs equal those of the stock model[/]")
