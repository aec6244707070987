"""``interpret probe train-lens``: train the affine maps of a tuned lens."""

from pathlib import Path
from typing import Annotated

import typer

from interpret.cli.console import show_table, tell
from interpret.cli.options import Loading, Model, Output
from interpret.records import LensTraining
from interpret.workers.settings import Workers


def train_lens_command(
    *,
    text: Annotated[Path, typer.Option(help="Text file (UTF-8) on which the lens is trained.")],
    output: Output = Path("runs/tuned-lens"),
    model: Model = "demo",
    steps: Annotated[int, typer.Option(min=1, help="Number of updates of the maps.")] = 250,
    batch_size: Annotated[int, typer.Option(min=1, help="Number of pieces of the text in each update.")] = 2,
    length: Annotated[int, typer.Option(min=1, help="Number of tokens of a piece of the text.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam at the first step; it decreases to 0.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Random seed of the order of the pieces.")] = 0,
    loading: Loading,
) -> None:
    """Train a tuned lens: an affine map per layer, which translates its input for the final norm and unembedding.

    interpret probe train-lens --text my_text.txt

    The maps minimise KL(model || lens) on the text. The run folder is the lens: give it to 'interpret probe lens' as
    --tuned. A lens belongs to its model and to the release of transformers with which it was trained.
    """
    from interpret.probing.lens_runs import train_lens

    opened = loading.open(model, Workers(1))
    run = train_lens(
        opened.model,
        opened.tokenizer,
        text,
        output,
        steps=steps,
        batch_size=batch_size,
        length=length,
        lr=lr,
        seed=seed,
        identity=opened.recorded["identity"],
        circumstances=opened.recorded["circumstances"],
    )
    rows: list[LensTraining] = run.records()
    first, last = rows[0].step, rows[-1].step
    show_table(
        "KL(model || lens) in nats per token of the text, at the beginning and at the end of the training:",
        ("layer", f"steps up to {first}", f"steps up to {last}"),
        [
            (str(one.layer_idx), f"{one.kl:.3f}", f"{other.kl:.3f}")
            for one, other in zip(
                [row for row in rows if row.step == first], [row for row in rows if row.step == last], strict=True
            )
        ],
    )
    tell(f"the lens is in {run.folder}: interpret probe lens --lens tuned --tuned {run.folder}")
