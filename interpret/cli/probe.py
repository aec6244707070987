"""``interpret probe lens``, ``logits`` and ``heads``: prompts in, what the parts of a model hold and write out."""

from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from interpret.cli.console import MOST_SHOWN, show_table
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import tell_counts
from interpret.probing.registry import TOP, Probe
from interpret.prompts.prompts import MODEL_TEMPLATE
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import read_options

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
    top: Annotated[int, typer.Option(min=0, help="How many of the likeliest tokens are listed.")] = TOP,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """Read the residual stream after every layer as the model reads its end (logit lens): a CSV row a token it says.

    interpret probe lens --examples examples/examples.json

    Lists the likeliest tokens, and rank and probability of 'target' and 'foil' where a prompt of the file has them.
    """
    run = _run("lens", examples, output, model, loading, {"top": top}, tokens=tokens, chat_template=chat_template)
    for rows in run.by_unit():
        _show_lens(rows)
        break
    _tell(run)


def _show_lens(rows: Sequence[LensReading]) -> None:
    """Show what one state of a prompt after the other says, at the first token that was read."""
    first = [row for row in rows if row.token_idx == rows[0].token_idx]
    followed = [key for key in ("target", "foil") if any(row.continuation == key for row in first)]
    cells = []
    for state, of_state in groupby(first, key=lambda row: (row.site, row.layer_idx)):
        predicted = list(of_state)
        ranks = [next(str(row.rank) for row in predicted if row.continuation == key) for key in followed]
        likeliest = predicted[0]
        cells.append(("{}.{}".format(*state), repr(likeliest.prediction), f"{likeliest.probability:.3f}", *ranks))
    show_table(
        f"What {rows[0].name} says at token {rows[0].token_idx}, {rows[0].token!r}, in each state:",
        ("state", "likeliest", "probability", *(f"rank of {key}" for key in followed)),
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
    run = _run("logits", examples, output, model, loading, {}, chat_template=chat_template)
    _show_logits(chain.from_iterable(run.by_unit()))
    _tell(run)


def _show_logits(rows: Iterable[LogitShare]) -> None:
    """Show the parts that add most, over all prompts."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        found.setdefault((row.component, row.layer_idx, row.head), []).append(row.share - (row.foil_share or 0))
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
    top: Annotated[int, typer.Option(min=1, help="How many tokens are listed of those a head looks at.")] = TOP,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """List the tokens every head looks at, and how much it is an induction head: a CSV row a head and token.

    interpret probe heads --examples examples/examples.json
    """
    run = _run("heads", examples, output, model, loading, {"top": top}, tokens=tokens, chat_template=chat_template)
    _show_heads(chain.from_iterable(run.by_unit()))
    _tell(run)


def _show_heads(rows: Iterable[HeadView]) -> None:
    """Show the heads that do most of an induction head's work."""
    best = sorted({(row.induction_score, row.layer_idx, row.head) for row in rows}, reverse=True)
    if not best:
        return
    show_table(
        "The heads that look most for what came after the present token before, on random tokens:",
        ("layer", "head", "induction score"),
        [(str(layer), str(head), f"{score:.3f}") for score, layer, head in best[:MOST_SHOWN]],
    )


def probe_command(probe: Probe) -> Callable[..., None]:
    """Return the command of a probe that a user registered: its options are given by ``--option``."""

    def command(
        *,
        examples: Examples,
        output: Output = Path("runs") / probe.name,
        model: Model = "demo",
        tokens: Tokens = "last",
        options: Annotated[
            list[str] | None,
            typer.Option("--option", help=f"Of the probe, as name=value: {_named(probe)}. May be given several times."),
        ] = None,
        chat_template: Chat = MODEL_TEMPLATE,
        loading: Loading,
    ) -> None:
        where = {"tokens": tokens} if probe.at_tokens else {}
        given = read_options(options or ())
        _tell(_run(probe.name, examples, output, model, loading, given, **where, chat_template=chat_template))

    command.__doc__ = (
        f"Probe prompts by {probe.name}: {probe.description.removesuffix('.')}.\n\n"
        f"interpret probe {probe.name} --examples examples/examples.json"
    )
    if not probe.at_tokens:
        one = signature(command)
        kept = [each for name, each in one.parameters.items() if name != "tokens"]
        vars(command)["__signature__"] = one.replace(parameters=kept)
    return command


def _named(probe: Probe) -> str:
    """List the options of a probe with their defaults."""
    return ", ".join(f"{name}={default}" for name, default in probe.options().items()) or "it has none"


def _run(
    name: str, examples: Path, output: Path, model: str, loading: Loading, options: dict[str, Any], **where: Any
) -> RunFolder:
    """Probe the prompts of a file."""
    from interpret.probing.prompt_runs import run_probe

    opened = loading.open(model)
    return run_probe(
        opened.model, opened.tokenizer, name, examples, output, options=options, **where, **opened.recorded
    )


def _tell(run: RunFolder) -> None:
    from interpret.probing.prompt_runs import PROBING

    tell_counts(PROBING, run)
