"""``interpret attribute``: prompts in, what each token did to what was written after them out."""

import json
from collections.abc import Container, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import typer
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel

from interpret import attribution_runs, provenance, runs, selectors
from interpret.anatomy import anatomy_of
from interpret.attribution.aggregation import HOWS
from interpret.attribution.functions import CONTRASTS, FUNCTIONS, Contrast, attributed_function, step_functions
from interpret.attribution.heat import title, visible
from interpret.attribution.languages import languages_of
from interpret.attribution.methods import METHODS
from interpret.attribution.plan import plan_attribution
from interpret.attribution.result import Attribution, How
from interpret.attribution.targets import Alignment
from interpret.attribution_runs import NOT_ATTRIBUTED, Question, Reduction
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
from interpret.facts import Prompt, load_examples
from interpret.models import load
from interpret.records import TokenScore

FIRST_STEPS, MOST_TOKENS = 10, 3
"""How many steps are shown, and how many tokens of each."""
CONTRAST = "contrast_prob_diff"


def attribute_command(
    prompt: Annotated[
        str | None, typer.Option(help="One text, read as it is: 'The capital of France is'. Or use --examples.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="What follows --prompt. [default: what the model writes]", show_default=False),
    ] = None,
    foil: Annotated[
        str | None,
        typer.Option(help="A wrong answer to hold it against: why Paris rather than London?"),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="JSON file with prompts, as examples/examples.json; with 'target' and 'foil' if you like."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: table.csv, manifest.json. The same command continues it. "
            "[default: runs/attributions for --examples, none for --prompt]",
            show_default=False,
        ),
    ] = None,
    model: Model = "demo",
    source_language: Annotated[
        str | None,
        typer.Option(help="Of M2M100 and NLLB: the code of the language of the prompts, such as en or eng_Latn."),
    ] = None,
    target_language: Annotated[
        str | None,
        typer.Option(help="Of translation models: the code of the language to write, such as fr or fra_Latn."),
    ] = None,
    method: Annotated[str, typer.Option(help=f"How: {', '.join(METHODS)}.")] = "input_x_gradient",
    attributed_fn: Annotated[
        str | None,
        typer.Option(
            help="What is attributed: probability, logit, entropy, ..., or contrast_prob_diff, P(target) - P(foil). "
            "[default: probability, contrast_prob_diff with --foil]",
            show_default=False,
        ),
    ] = None,
    contrast: Annotated[
        str, typer.Option(help="Where a foil is read: same_context, after the text itself; own_prefix, after its own.")
    ] = CONTRASTS[0],
    align: Annotated[
        str | None,
        typer.Option(help="'0:0,2:1': which token of the target is held against which of the foil, if lengths differ."),
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Which tokens after the prompt are attributed: 'first:end', as in a slice; '0:1'.")
    ] = ":",
    new_tokens: Annotated[int, typer.Option(min=1, help="How much the model writes at most.")] = 20,
    step_scores: Annotated[
        list[str] | None,
        typer.Option("--step-score", help="Also report this function of each step; may be given several times."),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Of layer methods and attention: '3,7', '0:20:5', or activations: 'mlp_out', 'resid_post.3'. "
            "[default: all; of attention the last]",
            show_default=False,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Of the method, as n_steps=20 or baseline=mean; may be given several times."),
    ] = None,
    aggregate: Annotated[
        str, typer.Option(help="What becomes of the width: sum (signed), mean, or l2 (without a sign).")
    ] = "sum",
    normalize: Annotated[bool, typer.Option("--normalize", help="Scores of a step as shares of their sum.")] = False,
    subwords: Annotated[bool, typer.Option("--subwords", help="Add up the tokens of each word.")] = False,
    chat_template: Annotated[
        str, typer.Option(help="Of --examples that are not raw: 'model' (its own), or a text with {prompt} in it.")
    ] = MODEL_TEMPLATE,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, for Attribution.load.")
    ] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page to look at in a browser.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of --json and --html.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Points or perturbed texts read side by side.")] = 8,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    load_in_8bit: Eight = False,
    load_in_4bit: Four = False,
) -> None:
    """Ask which tokens, or which layers, decide what is written: one CSV row a prompt, written token and token before.

    interpret attribute --prompt "The capital of France is" --target Paris --foil London

    Stopped at any time, the same command goes on where it was. Exit code 3: done, but for some prompts.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("examples", "output", "device")}
    prompts = _prompts(prompt, target, foil, examples)
    function = attributed_function(attributed_fn or (CONTRAST if foil else "probability"))
    pairs, (start, end), chosen = _pairs(align), _slice(steps), _options(options or [])
    reported = step_functions(step_scores or [])
    needs_foil = any(FUNCTIONS[name].contrast for name in (function, *reported))
    reduction = Reduction(_how(aggregate), normalize, subwords)
    if method not in METHODS:
        raise InputError(unknown("method", method, METHODS))
    _check_free([html_file, json_file], overwrite)
    opened = {"load_in_8bit": load_in_8bit, "load_in_4bit": load_in_4bit}
    lm, tokenizer = load(model, device=device, dtype=dtype, device_map=device_map, **opened, say=say)
    languages = languages_of(lm, tokenizer, source_language, target_language)
    plan = plan_attribution(
        lm,
        tokenizer,
        method=method,
        attributed_fn=function,
        contrast=_contrast(contrast) if needs_foil else None,
        with_foils=needs_foil or foil is not None,
        step_scores=reported,
        layers=_layers(layers, lm),
        start=start,
        end=end,
        batch_size=batch_size,
        max_new_tokens=new_tokens,
        languages=languages,
        options=chosen,
    )
    asked = attribution_runs.questions(tokenizer, prompts, chat_template)
    if examples is None:
        attribution_runs.inputs_of(plan, asked[0], pairs)  # a mistake in the one prompt is said before a folder is made
    circumstances = {
        "versions": provenance.versions(),
        "examples": str(examples),
        "device": str(lm.device),
        **{name: arguments.pop(name) for name in ("batch_size", "device_map")},
    }
    for name in ("json_file", "html_file", "overwrite"):
        del arguments[name]
    identity = {
        "command": "attribute",
        **arguments,
        "attributed_fn": function,
        "weights": weights(lm),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "examples_sha256": None if examples is None else provenance.file_sha256(examples),
    }
    names = [one.name for one in asked]
    with ExitStack() as stack:
        passing = examples is None and output is None
        folder = Path(stack.enter_context(TemporaryDirectory())) if passing else output or Path("runs/attributions")
        with runs.open_run(folder, TokenScore, identity=identity, circumstances=circumstances, units=names) as run:
            steps_done = attribution_runs.write_attributions(run, plan, asked, reduction, alignment=pairs)
            finish_units(run, steps_done, "Attributing", "prompts")
        manifest = runs.read_manifest(folder)
        if passing and manifest["dropped"]:
            raise InputError(manifest["dropped"][names[0]])
        _write_and_show(folder, asked, manifest["dropped"], html_file, json_file, overwrite)
        if not passing:
            tell_dropped(folder, manifest["counts"]["rows"], "prompts", "attributed", (NOT_ATTRIBUTED,))


def _prompts(prompt: str | None, target: str | None, foil: str | None, examples: Path | None) -> list[Prompt]:
    """Return what is to be attributed."""
    if (prompt is None) == (examples is None):
        raise InputError("give --prompt with a text, or --examples with a file of prompts")
    if examples is not None:
        if target is not None or foil is not None:
            raise InputError('--target and --foil belong to --prompt; in a file they are the keys "target" and "foil"')
        return load_examples(examples)
    if not prompt:
        raise InputError("--prompt is empty")
    return [Prompt("prompt", prompt, "prompt", raw=True, target=target, foil=foil)]


def _how(name: str) -> How:
    for how in HOWS:
        if how == name:
            return how
    raise InputError(unknown("aggregate", name, HOWS))


def _contrast(name: str) -> Contrast:
    if name not in CONTRASTS:
        raise InputError(unknown("contrast", name, CONTRASTS))
    return cast(Contrast, name)


def _pairs(words: str | None) -> Alignment | None:
    """Read '0:0,2:1'."""
    if words is None:
        return None
    try:
        pairs = [tuple(int(number) for number in pair.split(":")) for pair in words.split(",")]
        return [(step, of_foil) for step, of_foil in pairs]
    except ValueError:
        raise InputError(f"--align {words!r} is not understood; give pairs of numbers, such as 0:0,2:1") from None


def _slice(words: str) -> tuple[int | None, int | None]:
    """Read 'first:end'."""
    try:
        first, end = (int(bound) if bound.strip() else None for bound in words.split(":"))
    except ValueError:
        raise InputError(f"--steps {words!r} is not understood; give first:end, such as 0:1") from None
    return first, end


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Read 'n_steps=20': what is JSON is taken as such, the rest as text."""
    found = {}
    for option in words:
        name, equals, value = option.partition("=")
        if not equals:
            raise InputError(f"--option {option!r} has no value; write it as name=value, such as n_steps=20")
        try:
            found[name.strip()] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip()] = value
    return found


def _layers(words: str | None, lm: PreTrainedModel) -> list[int | str] | None:
    """Read '0:20:5,-1' into numbers; names of activations stay as they are."""
    if words is None:
        return None
    n_layers = lm.config.decoder_layers if lm.config.is_encoder_decoder else len(anatomy_of(lm).layers)
    found: list[int | str] = []
    for part in (part.strip() for part in words.split(",")):
        found += [part] if part[:1].isalpha() and part != "all" else selectors.select("layer", part, n_layers)
    return found


def _check_free(files: Sequence[Path | None], overwrite: bool) -> None:
    """Refuse files that are there, before anything is computed for them."""
    for file in files:
        if file is not None and file.exists() and not overwrite:
            raise InputError(f"{file} is there already; give --overwrite to replace it, or another name")


def _write_and_show(
    folder: Path,
    asked: Sequence[Question],
    dropped: Container[str],
    html: Path | None,
    json_file: Path | None,
    overwrite: bool,
) -> None:
    """Write what was asked for beside the run, and show the first steps; no more than one prompt is held."""
    kept = [number for number, one in enumerate(asked) if one.name not in dropped]
    if not kept:
        return
    found = attribution_runs.collected(folder, kept)
    if json_file is not None:
        say(f"wrote {found.save(json_file, overwrite=overwrite, compress=json_file.suffix == '.gz')}")
    if html is not None:
        say(f"wrote {found.show(html=html, overwrite=overwrite)}")
    _show([asked[number] for number in kept], found)


def _show(asked: Sequence[Question], found: Attribution) -> None:
    """Show the first steps, and what did most to them."""
    info = found.info
    table = Table("prompt", "token", info.attributed_fn, "what did most to it")
    shown, left = 0, 0
    for question, one in zip(asked, found.sequences, strict=True):
        rows = attribution_runs.token_scores(question, Attribution([one], info))
        of_steps = [list(of_one) for _, of_one in groupby(rows, key=lambda row: row.step)]
        room = FIRST_STEPS - table.row_count
        for of_one in of_steps[:room]:
            table.add_row(*map(escape, _cells(of_one, translated=one.source_tokens is not None)))
        shown, left = shown + 1, len(of_steps) - room
        if left >= 0:
            break
    meaning = f", {info.contrast}" if info.contrast else ""
    out.print(f"{title(found)}{meaning}, in: {info.unit}", highlight=False, soft_wrap=True)
    out.print(table)
    more = [f"{count} {what}" for count, what in ((left, "steps"), (len(asked) - shown, "prompts")) if count > 0]
    if more:
        out.print(f"and {' and '.join(more)} more", highlight=False)


def _cells(rows: Sequence[TokenScore], *, translated: bool) -> tuple[str, str, str, str]:
    """Return what is shown of one step: prompt, token, value, and what did most to it."""
    most = sorted(rows, key=lambda row: -abs(row.score))[:MOST_TOKENS]
    words = ", ".join(f"{_place(row, translated)} {row.score:+.3g}" for row in most)
    return rows[0].name, visible(rows[0].step_token), f"{rows[0].value:.3g}", words


def _place(row: TokenScore, translated: bool) -> str:
    """Name a token, the activation at it, and of a translation its side."""
    side = ("source " if row.in_prompt else "target ") if translated else ""
    return f"{side}{row.position} {visible(row.token)}" + (f" {row.activation}" if row.activation else "")
