"""``interpret probe``: what the parts of a model hold and write, each kind a command of its own."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret import provenance, runs, selectors
from interpret.anatomy import anatomy_of
from interpret.chat import MODEL_TEMPLATE
from interpret.cli.common import (
    Device,
    DeviceMap,
    Dtype,
    Eight,
    Four,
    Model,
    finish_units,
    out,
    say,
    tell_dropped,
    weights,
)
from interpret.errors import InputError, unknown
from interpret.facts import load_examples
from interpret.models import load
from interpret.neuron_runs import NeuronPlan, check_plan, write_neurons
from interpret.pair_files import load_pairs, pairs_of_facts
from interpret.probe_runs import (
    NOT_PROBED,
    Probe,
    heads_probe,
    lens_probe,
    logits_probe,
    probed_prompts,
    write_probes,
)
from interpret.probing.neurons import CHOICES, Token
from interpret.records import HeadView, LensReading, LogitShare, NeuronEffect

SHOWN = 10
"""How many rows are shown at the end."""
SURE = 0.05
"""The false discovery rate at which neurons are counted at the end."""

probe = typer.Typer(
    help="Probe what parts of a model hold and write: the logit lens, shares in a logit, heads, neurons.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
R = TypeVar("R")

Examples = Annotated[Path, typer.Option(help="JSON file with prompts, as examples/examples.json.")]
Chat = Annotated[
    str, typer.Option(help="Of prompts that are not raw: 'model' (its own), or a text with {prompt} in it.")
]
Tokens = Annotated[
    str, typer.Option(help="Where in the prompt: 'last', 'subject_last', '0,-1', '2:6', 'content', 'all'.")
]


Output = Annotated[Path, typer.Option(help="Run folder: table.csv, manifest.json. The same command continues it.")]


@dataclass(frozen=True)
class _Opened:
    """A model as the options asked for it, and what a manifest tells of that."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: dict[str, Any]
    circumstances: dict[str, Any]


def _open(
    model: str, device: str | None, dtype: str | None, device_map: str | None, eight: bool, four: bool
) -> _Opened:
    quantized = {"load_in_8bit": eight, "load_in_4bit": four}
    lm, tokenizer = load(model, device=device, dtype=dtype, device_map=device_map, **quantized, say=say)
    kept = str(lm.dtype).removeprefix("torch.")
    return _Opened(
        lm,
        tokenizer,
        {"model": model, "weights": weights(lm), "dtype": kept, **quantized},
        {"versions": provenance.versions(), "device": str(lm.device), "device_map": device_map},
    )


@probe.command("lens")
def lens_command(
    examples: Examples,
    output: Output = Path("runs/lens"),
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=0, help="How many of the likeliest tokens are listed.")] = 5,
    chat_template: Chat = MODEL_TEMPLATE,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Read the residual stream after every layer as the model reads its end (logit lens): a CSV row a token it says.

    Lists the likeliest tokens, and rank and probability of 'target' and 'foil' where a prompt of the file has them.
    """
    opened = _open(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    asked = {"command": "probe lens", "tokens": tokens, "top": top, "chat_template": chat_template}
    read = lens_probe(opened.model, opened.tokenizer, top)
    rows = _run(output, LensReading, opened, read, asked, examples)
    if rows:
        first = [row for row in rows if (row.name, row.position) == (rows[0].name, rows[0].position)]
        followed = [key for key in ("target", "foil") if any(row.followed == key for row in first)]
        _show(
            f"What {rows[0].name} says at token {rows[0].position}, {rows[0].token!r}, after each layer:",
            ("layer", "likeliest", "probability", *(f"rank of {key}" for key in followed)),
            [
                (str(layer), repr(said[0].said), f"{said[0].probability:.3f}", *(_rank(said, key) for key in followed))
                for layer, said in _by(first, lambda row: row.layer).items()
            ],
        )
    tell_dropped(output, len(rows), "prompts", "probed", (NOT_PROBED,))


def _rank(said: Sequence[LensReading], followed: str) -> str:
    return next(str(row.rank) for row in said if row.followed == followed)


@probe.command("logits")
def logits_command(
    examples: Examples,
    output: Output = Path("runs/logits"),
    model: Model = "demo",
    chat_template: Chat = MODEL_TEMPLATE,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Part the logit of the answer among all heads and MLPs (direct logit attribution): a CSV row a part.

    The answer is the first token of 'target', or what the model finds likeliest; a 'foil' is parted beside it.
    """
    opened = _open(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    asked = {"command": "probe logits", "chat_template": chat_template}
    rows = _run(output, LogitShare, opened, logits_probe(opened.model, opened.tokenizer), asked, examples)
    sums: dict[tuple[str, int, int], list[float]] = {}
    for row in rows:
        sums.setdefault((row.component, row.layer, row.head), []).append(row.share - (row.foil_share or 0))
    means = sorted(((sum(shares) / len(shares), part) for part, shares in sums.items()), reverse=True)
    if rows:
        _show(
            "What adds most to the logit of the answer (less that of the foil, where there is one), mean of prompts:",
            ("component", "layer", "head", "share"),
            [
                (part, str(layer), "" if head < 0 else str(head), f"{share:+.3f}")
                for share, (part, layer, head) in means[:SHOWN]
            ],
        )
    tell_dropped(output, len(rows), "prompts", "probed", (NOT_PROBED,))


@probe.command("heads")
def heads_command(
    examples: Examples,
    output: Output = Path("runs/heads"),
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=1, help="How many tokens are listed of those a head looks at.")] = 5,
    chat_template: Chat = MODEL_TEMPLATE,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """List the tokens every head looks at, and how much it is an induction head: a CSV row a head and token."""
    opened = _open(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    asked = {"command": "probe heads", "tokens": tokens, "top": top, "chat_template": chat_template}
    rows = _run(output, HeadView, opened, heads_probe(opened.model, top), asked, examples)
    best = sorted({(row.induction_score, row.layer, row.head) for row in rows}, reverse=True)
    if rows:
        _show(
            "The heads that look most for what came after the present token before, on random tokens:",
            ("layer", "head", "induction score"),
            [(str(layer), str(head), f"{score:.3f}") for score, layer, head in best[:SHOWN]],
        )
    tell_dropped(output, len(rows), "prompts", "probed", (NOT_PROBED,))


@probe.command("neurons")
def neurons_command(
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
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Tell which MLP neurons say something else about true texts than about false ones: a CSV row a neuron.

    The surest come first. q_value is adjusted for all neurons tested, so that of those below 0.05 about one in twenty
    is false; below a dozen pairs nothing can be found.
    """
    texts, source = _texts(pairs, facts)
    where = _token(token)
    opened = _open(model, device, dtype, device_map, load_in_8bit, load_in_4bit)
    chosen = selectors.select("layer", layers, len(anatomy_of(opened.model).layers))
    plan = NeuronPlan(texts, chosen, where, permutations, seed, batch_size)
    check_plan(opened.tokenizer, plan)
    asked = {
        "command": "probe neurons",
        "texts_sha256": provenance.file_sha256(source),
        "layers": layers,
        "token": token,
        "permutations": permutations,
        "seed": seed,
    }
    circumstances = {**opened.circumstances, "texts": str(source), "batch_size": batch_size}
    identity = {**asked, **opened.identity}
    with runs.open_run(output, NeuronEffect, identity=identity, circumstances=circumstances, units=plan.units) as run:
        finish_units(run, write_neurons(run, opened.model, opened.tokenizer, plan), "Reading", "parts")
    rows = runs.read_table(output, NeuronEffect)
    _show(
        f"The surest of {len(rows)} neurons, {len(texts)} pairs:",
        ("layer", "neuron", "true", "false", "Hedges' g", "p", "q"),
        [
            (
                str(row.layer),
                str(row.neuron),
                *_numbers(row.true_mean, row.false_mean, row.hedges_g),
                f"{row.p_value:.2g}",
                f"{row.q_value:.2g}",
            )
            for row in rows[:SHOWN]
        ],
    )
    sure = sum(row.q_value <= SURE for row in rows)
    out.print(f"{sure} neurons have q <= {SURE}", highlight=False)
    out.print(f"{len(rows)} rows in {output / runs.TABLE}", highlight=False, soft_wrap=True)


def _numbers(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:+.2f}" for value in values)


def _texts(pairs: Path | None, facts: Path | None) -> tuple[list[tuple[str, str]], Path]:
    """Return the pairs of texts, and the file they are from."""
    if pairs is not None and facts is None:
        return load_pairs(pairs), pairs
    if facts is not None and pairs is None:
        found, left_out = pairs_of_facts(facts)
        if left_out:
            say(f"{left_out} rows of {facts} have no foil or are wrong, and are left out")
        return found, facts
    raise InputError("give --pairs with a file of true and false texts, or --facts with facts that have foils")


def _token(words: str) -> Token:
    """Read 'last', or a position."""
    if words in CHOICES:
        return cast(Token, words)
    try:
        return int(words)
    except ValueError:
        raise InputError(unknown("token", words, [*CHOICES, "a position such as 0 or -2"])) from None


def _run(output: Path, record: type[R], opened: _Opened, read: Probe, asked: dict[str, Any], examples: Path) -> list[R]:
    """Probe the prompts of a file, and return the rows."""
    where = {key: asked[key] for key in ("tokens", "chat_template") if key in asked}
    prompts = probed_prompts(opened.tokenizer, load_examples(examples), **where)
    identity = {**asked, **opened.identity, "examples_sha256": provenance.file_sha256(examples)}
    circumstances = {**opened.circumstances, "examples": str(examples)}
    names = [one.name for one in prompts]
    with runs.open_run(output, record, identity=identity, circumstances=circumstances, units=names) as run:
        finish_units(run, write_probes(run, read, prompts), "Probing", "prompts")
    return runs.read_table(output, record)


def _by(rows: Iterable[R], key: Callable[[R], int]) -> dict[int, list[R]]:
    found: dict[int, list[R]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(*header)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(title, highlight=False, soft_wrap=True)
    out.print(table)
