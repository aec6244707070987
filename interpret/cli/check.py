"""``interpret check``: show versions, prove which analyses work on a model, and check surgery without edits."""

import json
from dataclasses import asdict
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
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    loading: Loading,
) -> None:
    """Show versions, prove which analyses work on a model, and check surgery without edits.

    interpret check demo

    Each analysis is proved by comparing what it is computed from with what the model itself computes. Then the
    functions of the stock model are compared with the surgery functions, once with no edit and once with an identity
    edit (of strength 0 in every layer): all differences must be exactly 0. If anything differs, the exit code is 2.
    """
    from interpret.surgery import selfcheck

    show = (lambda line: None) if as_json else tell
    about = {**provenance.versions(), "patch": selfcheck.patch_state()}
    for name, value in about.items():
        show(f"{name:<16}{value}")
    lm, _ = loading.load(model)
    features = selfcheck.features(lm)
    for name, value in features.items():
        show(f"{name:<16}{value}")
    proofs, results = [], []
    for proof in selfcheck.certificate(lm):
        proofs.append(proof)
        show(f"{proof.analyses:<38}{proof.result:<16}{proof.reason}")
    for result in selfcheck.comparisons(lm):
        results.append(result)
        show(f"{result.what:<58}largest difference {result.difference:g}")
    if as_json:
        found = {"analyses": [asdict(proof) for proof in proofs], "surgery": [asdict(result) for result in results]}
        tell(json.dumps({**about, **features, **found}, indent=2))
    if failed := [proof.analyses for proof in proofs if proof.result == "fails"]:
        raise InterpretError(f"this model does not compute what the row of its family says: {'; '.join(failed)} fail")
    worst = max((result.difference for result in results), default=0.0)
    if worst > 0:
        raise InterpretError(f"surgery without edits changed the outputs of this model by up to {worst:g}; expected 0")
    if results and not as_json:
        out.print("[green]all outputs equal those of the stock model[/]")
