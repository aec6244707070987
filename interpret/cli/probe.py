"""``interpret probe lens``, ``logits`` and ``heads``, and commands for probes that users register."""

import math
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from interpret.cli.console import MOST_SHOWN, show_table
from interpret.cli.options import Loading, Model, Output
from interpret.cli.work import tell_counts
from interpret.finite import descending
from interpret.probing.registry import TOP, Probe
from interpret.prompts.prompts import MODEL_TEMPLATE, load_examples
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import read_options

Examples = Annotated[Path, typer.Option(help="JSON file of prompts such as examples/examples.json.")]
Chat = Annotated[
    str,
    typer.Option(
        help="Chat template: 'model' (the model's own) or a text that contains {prompt}; not used for raw prompts."
    ),
]
Tokens = Annotated[
    str, typer.Option(help="Tokens of the prompt to read: 'last', 'subject_last', '0,-1', '2:6', 'content', 'all'.")
]


def lens_command(
    *,
    examples: Examples,
    output: Output = Path("runs/lens"),
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=0, help="Number of most likely tokens to list.")] = TOP,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """Apply the final norm and unembedding after every layer (logit lens): one CSV row per token, layer and prediction.

    interpret probe lens --examples examples/examples.json

    Lists the most likely next tokens of every layer, and the rank and probability of 'target' and 'foil' for prompts
    that have them.
    """
    run = _run("lens", examples, output, model, loading, {"top": top}, tokens=tokens, chat_template=chat_template)
    for rows in run.by_unit():
        _show_lens(rows)
        break
    _tell(run)


def _show_lens(rows: Sequence[LensReading]) -> None:
    """Print the most likely token after each layer, at the first token that was read."""
    first = [row for row in rows if row.token_idx == rows[0].token_idx]
    followed = [key for key in ("target", "foil") if any(row.continuation == key for row in first)]
    cells = []
    for state, of_state in groupby(first, key=lambda row: (row.site, row.layer_idx)):
        predicted = list(of_state)
        rank_of = {row.continuation: "" if row.rank is None else str(row.rank) for row in predicted}
        ranks = [rank_of[key] for key in followed]
        best = predicted[0]
        cells.append(("{}.{}".format(*state), repr(best.prediction), f"{best.probability:.3f}", *ranks))
    show_table(
        f"Logit lens of prompt {rows[0].name} at token {rows[0].token_idx}, {rows[0].token!r}:",
        ("state", "most likely", "probability", *(f"rank of {key}" for key in followed)),
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
    """Decompose the logit of the answer over heads and MLPs (direct logit attribution): one CSV row per component.

    interpret probe logits --examples examples/examples.json

    The answer is the first token of 'target', or the most likely token if there is no target. If a prompt has a
    'foil', the logit of its first token is decomposed as well.
    """
    run = _run("logits", examples, output, model, loading, {}, chat_template=chat_template)
    _show_logits(chain.from_iterable(run.by_unit()))
    _tell(run)


def _show_logits(rows: Iterable[LogitShare]) -> None:
    """Print the components with the largest mean share over all prompts."""
    found: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        share = row.share - (row.foil_share or 0)
        found.setdefault((row.component, row.layer_idx, row.head), []).extend([share] if math.isfinite(share) else [])
    means = sorted(((sum(shares) / len(shares), part) for part, shares in found.items() if shares), reverse=True)
    if not means:
        return
    show_table(
        "Largest contributions to the logit of the answer (minus that of the foil, if any), mean over prompts:",
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
    top: Annotated[int, typer.Option(min=1, help="Number of most attended tokens to list.")] = TOP,
    chat_template: Chat = MODEL_TEMPLATE,
    loading: Loading,
) -> None:
    """List the tokens that every head attends to most, and its induction score: one CSV row per head and token.

    interpret probe heads --examples examples/examples.json

    The induction score is measured on repeated random tokens; it is 1 for a perfect induction head.
    """
    run = _run("heads", examples, output, model, loading, {"top": top}, tokens=tokens, chat_template=chat_template)
    _show_heads(chain.from_iterable(run.by_unit()))
    _tell(run)


def _show_heads(rows: Iterable[HeadView]) -> None:
    """Print the heads with the largest induction scores."""
    scores = {(row.layer_idx, row.head): row.induction_score for row in rows}
    best = sorted(scores, key=lambda head: descending(scores[head]))
    if not best:
        return
    show_table(
        "The heads with the largest induction scores, on repeated random tokens:",
        ("layer", "head", "induction score"),
        [(*map(str, head), f"{scores[head]:.3f}") for head in best[:MOST_SHOWN]],
    )


def probe_command(probe: Probe) -> Callable[..., None]:
    """Return the command for a registered probe; the options of the probe are given by ``--option``."""

    def command(
        *,
        examples: Examples,
        output: Output = Path("runs") / probe.name,
        model: Model = "demo",
        tokens: Tokens = "last",
        options: Annotated[
            list[str] | None,
            typer.Option("--option", help=f"Option of the probe: {_named(probe)}. May be given several times."),
        ] = None,
        chat_template: Chat = MODEL_TEMPLATE,
        loading: Loading,
    ) -> None:
        where = {"tokens": tokens} if probe.at_tokens else {}
        given = read_options(options or ())
        _tell(_run(probe.name, examples, output, model, loading, given, **where, chat_template=chat_template))

    command.__doc__ = (
        f"Run the probe {probe.name}: {probe.description.removesuffix('.')}.\n\n"
        f"interpret probe {probe.name} --examples examples/examples.json"
    )
    if not probe.at_tokens:
        one = signature(command)
        kept = [each for name, each in one.parameters.items() if name != "tokens"]
        vars(command)["__signature__"] = one.replace(parameters=kept)
    return command


def _named(probe: Probe) -> str:
    """Return the options of a probe with their defaults, as text."""
    return ", ".join(f"{name}={default}" for name, default in probe.options().items()) or "there are none"


def _run(
    name: str, examples: Path, output: Path, model: str, loading: Loading, options: dict[str, Any], **where: Any
) -> RunFolder:
    """Probe the prompts of a file."""
    from interpret.probing.prompt_runs import run_probe

    load_examples(examples)  # what can be checked without the model is checked first
    opened = loading.open(model)
    return run_probe(
        opened.model, opened.tokenizer, name, examples, output, options=options, **where, **opened.recorded
    )


def _tell(run: RunFolder) -> None:
    from interpret.probing.prompt_runs import PROBING

    tell_counts(PROBING, run)
