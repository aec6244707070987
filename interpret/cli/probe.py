"""``interpret probe lens``, ``logits`` and ``heads``, and commands for probes that users register."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from itertools import chain, groupby
from pathlib import Path
from typing import Annotated, Any

import typer

from interpret.cli.console import MOST_SHOWN, show_table, tell_more
from interpret.cli.options import Loading, Model, WorkerOptions, output_option
from interpret.cli.sources import AllPrompts, PromptOptions, SubjectPrompts, TargetPrompts, tell_framing
from interpret.cli.work import tell_counts
from interpret.finite import descending
from interpret.probing.registry import LENSES, LOGIT, TOP, Probe
from interpret.records import HeadView, LensReading, LogitShare
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import read_options

Tokens = Annotated[
    str, typer.Option(help="Tokens of the prompt to read: 'last', 'subject_last', '0,-1', '2:6', 'content', 'all'.")
]


def lens_command(
    *,
    prompts: AllPrompts,
    output: Annotated[Path | None, output_option("lens")] = None,
    model: Model = "demo",
    tokens: Tokens = "last",
    lens: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(LENSES)}; may be given several times, to compare them.  [default: {LOGIT}]"),
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="For --lens tuned: the run folder of 'interpret probe train-lens'.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Number of most likely tokens to list.")] = TOP,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Read only this many prompts, from the start of the file.")
    ] = None,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Read the state after every layer by a lens: one CSV row per lens, token, layer and prediction.

    interpret probe lens --prompt "The capital of France is" --target Paris

    Lists the most likely next tokens of every layer, and the rank and probability of 'target' and 'foil' for prompts
    that have them. logit: final norm and unembedding. tuned: an affine map before them. identity: a prompt that repeats
    tokens reads the state. 'agrees' and 'kl' compare each layer with the model's own answer.
    """
    from interpret.probing.lenses import check_lenses
    from interpret.probing.prompt_runs import lens_identity, lens_options

    chosen = lens or [LOGIT]
    check_lenses(chosen, tuned=tuned)
    of_tuned = lens_identity(tuned)
    options = lens_options(top, chosen, tuned)
    run = _run("lens", prompts, output, model, loading, workers, options, tokens=tokens, limit=limit, identity=of_tuned)
    rows = next(run.by_unit(), None)
    if rows:
        for name in chosen:
            _show_lens([row for row in rows if row.lens == name])
        n_tokens = len({row.token_idx for row in rows})
        tell_more(tokens=n_tokens - 1, prompts=len(run.units) - len(run.dropped) - 1)
        if len(run.units) - len(run.dropped) > 1:
            _show_averages(run.records())
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
        f"{rows[0].lens.capitalize()} lens of prompt {rows[0].name} at token {rows[0].token_idx}, {rows[0].token!r}:",
        ("state", "most likely", "probability", *(f"rank of {key}" for key in followed)),
        cells,
    )


def _show_averages(rows: Sequence[LensReading]) -> None:
    """Print the agreement and the KL of each lens at each layer."""
    from interpret.probing.lens_averages import lens_averages

    averages = lens_averages(rows)
    lenses = list(dict.fromkeys(one.lens for one in averages))
    of_lenses = [[one for one in averages if one.lens == lens] for lens in lenses]
    show_table(
        f"Agreement with the model's most likely token, and KL(model || lens) in nats, over {averages[0].n} prompts:",
        ("state", *(f"{lens}: {what}" for lens in lenses for what in ("agrees", "KL"))),
        [
            (
                f"{of_state[0].site}.{of_state[0].layer_idx}",
                *(cell for one in of_state for cell in (f"{one.agreement:.2f}", f"{one.kl:.2f}")),
            )
            for of_state in zip(*of_lenses, strict=True)
        ],
    )


def logits_command(
    *,
    prompts: TargetPrompts,
    output: Annotated[Path | None, output_option("logits")] = None,
    model: Model = "demo",
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """Decompose the logit of the answer over heads and MLPs (direct logit attribution): one CSV row per component.

    interpret probe logits --prompt "The capital of France is" --target Paris --foil Rome

    The answer is the first token of 'target', or the most likely token if there is no target. If a prompt has a
    'foil', the logit of its first token is decomposed as well.
    """
    run = _run("logits", prompts, output, model, loading, workers, {})
    _show_logits(chain.from_iterable(run.by_unit()))
    _tell(run)


def _show_logits(rows: Iterable[LogitShare]) -> None:
    """Print the components with the largest mean share over all prompts."""
    found: dict[tuple[str, int, int], list[float]] = {}
    names: dict[str, None] = {}
    for row in rows:
        names[row.name] = None
        share = row.share - (row.foil_share or 0)
        found.setdefault((row.component, row.layer_idx, row.head), []).extend([share] if math.isfinite(share) else [])
    means = sorted(((sum(shares) / len(shares), part) for part, shares in found.items() if shares), reverse=True)
    if not means:
        return
    of = f"mean over {len(names)} prompts" if len(names) > 1 else "prompt " + "".join(names)
    show_table(
        f"Largest contributions to the logit of the answer (minus that of the foil, if any), {of}:",
        ("component", "layer", "head", "share"),
        [
            (part, str(layer), "" if head < 0 else str(head), f"{share:+.3f}")
            for share, (part, layer, head) in means[:MOST_SHOWN]
        ],
    )
    tell_more(components=len(found) - MOST_SHOWN)


def heads_command(
    *,
    prompts: SubjectPrompts,
    output: Annotated[Path | None, output_option("heads")] = None,
    model: Model = "demo",
    tokens: Tokens = "last",
    top: Annotated[int, typer.Option(min=1, help="Number of most attended tokens to list.")] = TOP,
    loading: Loading,
    workers: WorkerOptions,
) -> None:
    """List the tokens that every head attends to most, and its induction score: one CSV row per head and token.

    interpret probe heads --prompt "Paris is in France. Rome is in" --raw

    The induction score is measured on repeated random tokens; it is 1 for a perfect induction head.
    """
    run = _run("heads", prompts, output, model, loading, workers, {"top": top}, tokens=tokens)
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
    tell_more(heads=len(best) - MOST_SHOWN)


def probe_command(probe: Probe) -> Callable[..., None]:
    """Return the command for a registered probe; the options of the probe are given by ``--option``."""

    def command(
        *,
        prompts: AllPrompts,
        output: Annotated[Path | None, output_option(probe.name)] = None,
        model: Model = "demo",
        tokens: Tokens = "last",
        options: Annotated[
            list[str] | None,
            typer.Option("--option", help=f"Option of the probe: {_named(probe)}. May be given several times."),
        ] = None,
        loading: Loading,
        workers: WorkerOptions,
    ) -> None:
        read_at = tokens if probe.at_tokens else "last"
        given = read_options(options or ())
        _tell(_run(probe.name, prompts, output, model, loading, workers, given, tokens=read_at))

    command.__doc__ = (
        f"Run the probe {probe.name}: {probe.description.removesuffix('.')}.\n\n"
        f'interpret probe {probe.name} --prompt "The capital of France is" --target Paris'
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
    name: str,
    prompts: PromptOptions,
    output: Path | None,
    model: str,
    loading: Loading,
    workers: WorkerOptions,
    options: dict[str, Any],
    tokens: str = "last",
    limit: int | None = None,
    identity: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Probe a prompt, or those of a file, or the first of these; ``identity`` is recorded besides the options."""
    from interpret.probing.prompt_runs import probe_of, run_probe
    from interpret.prompts.chat import has_template
    from interpret.prompts.tokens import check_tokens, without_subject

    # Check everything that can be checked without the model first.
    found = prompts.read()[:limit]
    probe_of(name).check_options(options)
    check_tokens(tokens)
    without_subject(found, tokens)
    opened = loading.open(model, workers.asked(loading.imports))
    if opened.tokenizer is not None:
        tell_framing(found, prompts.chat_template, has_template(opened.tokenizer))
    return run_probe(
        opened.model,
        opened.tokenizer,
        name,
        prompts.source(found) if limit is None else found,
        prompts.folder(f"runs/{name}", output, model, loading, options, tokens),
        options=options,
        tokens=tokens,
        raw=prompts.raw,
        chat_template=prompts.chat_template,
        **opened.recorded | {"identity": {**opened.recorded["identity"], **(identity or {})}},
    )


def _tell(run: RunFolder) -> None:
    from interpret.probing.prompt_runs import PROBING

    tell_counts(PROBING, run)
