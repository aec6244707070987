"""``interpret probe lens``, ``logits`` and ``heads``: prompts in, what the parts of a model hold and write out."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from interpret.cli.console import MOST_SHOWN, show_table
from interpret.cli.options import Loading, Model, Opened, Output
from interpret.cli.work import Work, do_units, tell_counts
from interpret.probing.prompt_runs import (
    NOT_PROBED,
    Probe,
    heads_probe,
    lens_probe,
    logits_probe,
    probed_prompts,
    write_probes,
)
from interpret.prompts.chat import MODEL_TEMPLATE
from interpret.prompts.prompts import load_examples
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage import provenance, run_folder

PROBING = Work("Probing", "probed", "prompts", (NOT_PROBED,))
R = TypeVar("R")

Examples = Annotated[Path, typer.Option(help="JSON file with prompts, as examples/examples.json.")]
Chat = Annotated[
    str, typer.Option(help="Of prompts that are not raw: 'model' (its own), or a text with {prompt} in it.")
]
Tokens = Annotated[
    str, typer.Option(help="Where in the prompt: 'last', 'subject_last', '0,-1', '2:6', 'content', 'all'.")
]


def lens_command(
    *,
    examples: Examples,
    output: Output = Path("runs/lens"),
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=0, help="How many of the likeliest tokens are listed.")] = 5,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """Read the residual stream after every layer as the model reads its end (logit lens): a CSV row a token it says.

    interpret probe lens --examples examples/examples.json

    Lists the likeliest tokens, and rank and probability of 'target' and 'foil' where a prompt of the file has them.
    """
    opened = loading.open(model)
    asked = {"command": "probe lens", "tokens": tokens, "top": top, "chat_template": chat_template}
    read = lens_probe(opened.model, opened.tokenizer, top)
    for rows in islice(_probed(output, LensReading, opened, read, asked, examples), 1):
        _show_lens(rows)
    tell_counts(PROBING, output)


def _show_lens(rows: Sequence[LensReading]) -> None:
    """Show what one state of a prompt after the other says, at the first token that was read."""
    first = [row for row in rows if row.position == rows[0].position]
    followed = [key for key in ("target", "foil") if any(row.followed == key for row in first)]
    cells = []
    for layer, of_layer in groupby(first, key=lambda row: row.layer):
        said = list(of_layer)
        ranks = [next(str(row.rank) for row in said if row.followed == key) for key in followed]
        cells.append((str(layer), repr(said[0].said), f"{said[0].probability:.3f}", *ranks))
    show_table(
        f"What {rows[0].name} says at token {rows[0].position}, {rows[0].token!r}, after each layer:",
        ("layer", "likeliest", "probability", *(f"rank of {key}" for key in followed)),
        cells,
    )


def logits_command(
    *,
    examples: Examples,
    output: Output = Path("runs/logits"),
    model: Model = "demo",
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """Part the logit of the answer among all heads and MLPs (direct logit attribution): a CSV row a part.

    interpret probe logits --examples examples/examples.json

    The answer is the first token of 'target', or what the model finds likeliest; a 'foil' is parted beside it.
    """
    opened = loading.open(model)
    asked = {"command": "probe logits", "chat_template": chat_template}
    read = logits_probe(opened.model, opened.tokenizer)
    _show_logits(chain.from_iterable(_probed(output, LogitShare, opened, read, asked, examples)))
    tell_counts(PROBING, output)


def _show_logits(rows: Iterable[LogitShare]) -> None:
    """Show the parts that add most, over all prompts."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        found.setdefault((row.component, row.layer, row.head), []).append(row.share - (row.foil_share or 0))
    means = sorted(((sum(shares) / len(shares), part) for part, shares in found.items()), reverse=True)
    if not means:
        return
    show_table(
        "What adds most to the logit of the answer (less that of the foil, where there is one), mean of prompts:",
        ("component", "layer", "head", "share"),
        [
            (part, str(layer), "" if head < 0 else str(head), f"{share:+.3f}")
            for share, (part, layer, head) in means[:MOST_SHOWN]
        ],
    )


def heads_command(
    *,
    examples: Examples,
    output: Output = Path("runs/heads"),
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=1, help="How many tokens are listed of those a head looks at.")] = 5,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """List the tokens every head looks at, and how much it is an induction head: a CSV row a head and token.

    interpret probe heads --examples examples/examples.json
    """
    opened = loading.open(model)
    asked = {"command": "probe heads", "tokens": tokens, "top": top, "chat_template": chat_template}
    _show_heads(chain.from_iterable(_probed(output, HeadView, opened, heads_probe(opened.model, top), asked, examples)))
    tell_counts(PROBING, output)


def _show_heads(rows: Iterable[HeadView]) -> None:
    """Show the heads that do most of an induction head's work."""
    best = sorted({(row.induction_score, row.layer, row.head) for row in rows}, reverse=True)
    if not best:
        return
    show_table(
        "The heads that look most for what came after the present token before, on random tokens:",
        ("layer", "head", "induction score"),
        [(str(layer), str(head), f"{score:.3f}") for score, layer, head in best[:MOST_SHOWN]],
    )


def _probed(
    output: Path, record: type[R], opened: Opened, read: Probe, asked: dict[str, Any], examples: Path
) -> Iterator[list[R]]:
    """Probe the prompts of a file, and return the rows of each."""
    where = {key: asked[key] for key in ("tokens", "chat_template") if key in asked}
    prompts = probed_prompts(opened.tokenizer, load_examples(examples), **where)
    do_units(
        PROBING,
        output,
        record,
        lambda run: write_probes(run, read, prompts),
        units=[one.name for one in prompts],
        identity={**opened.identity, **asked, "examples_sha256": provenance.file_sha256(examples)},
        circumstances={**opened.circumstances, "examples": str(examples)},
    )
    return run_folder.read_units(output, record)
