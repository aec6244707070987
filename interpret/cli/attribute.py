"""``interpret attribute``: prompts in, what each token did to what was written after them out."""

import json
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from transformers import PreTrainedModel

from interpret.anatomy import anatomy_of
from interpret.attribution import runs
from interpret.attribution.languages import languages_of
from interpret.attribution.methods.registry import METHODS
from interpret.attribution.plan import Plan, plan_attribution
from interpret.attribution.result.aggregation import HOWS
from interpret.attribution.result.attribution import Attribution
from interpret.attribution.result.heatmap import title, visible
from interpret.attribution.runs import NOT_ATTRIBUTED, Question, Reduction
from interpret.attribution.steps.functions import CONTRASTS, FUNCTIONS, attributed_function, step_functions
from interpret.attribution.targets import Alignment
from interpret.cli.console import MOST_SHOWN, choice, say, show_table, tell
from interpret.cli.options import Loading, Model, Opened
from interpret.cli.work import Work, do_units, tell_counts
from interpret.errors import InputError
from interpret.prompts import selectors
from interpret.prompts.chat import MODEL_TEMPLATE
from interpret.prompts.prompts import Prompt, load_examples
from interpret.records import TokenScore
from interpret.storage import provenance, run_folder

ATTRIBUTING = Work("Attributing", "attributed", "prompts", (NOT_ATTRIBUTED,))
MOST_TOKENS = 3
"""How many tokens are shown of each step."""
CONTRAST, PLAIN = "contrast_prob_diff", "probability"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is attributed: one prompt, or those of a file."""

    prompt: Annotated[
        str | None, typer.Option(help="One text, read as it is: 'The capital of France is'. Or use --examples.")
    ] = None
    target: Annotated[
        str | None,
        typer.Option(help="What follows --prompt. [default: what the model writes]", show_default=False),
    ] = None
    foil: Annotated[
        str | None,
        typer.Option(help="A wrong answer to hold the target against: why Paris rather than London?"),
    ] = None
    examples: Annotated[
        Path | None,
        typer.Option(help="JSON file with prompts, as examples/examples.json; with 'target' and 'foil' if you like."),
    ] = None

    def prompts(self) -> list[Prompt]:
        """Read the prompts."""
        if (self.prompt is None) == (self.examples is None):
            raise InputError("give --prompt with a text, or --examples with a file of prompts")
        if self.examples is None:
            if not self.prompt:
                raise InputError("--prompt is empty")
            for name, words in (("target", self.target), ("foil", self.foil)):
                if words is not None and not words.strip():
                    raise InputError(f"--{name} is empty; leave it out, or give the words that follow the prompt")
            return [Prompt("prompt", self.prompt, "prompt", raw=True, target=self.target, foil=self.foil)]
        if self.target is not None or self.foil is not None:
            raise InputError('--target and --foil belong to --prompt; in a file they are the keys "target" and "foil"')
        return load_examples(self.examples)


@dataclass(frozen=True, kw_only=True)
class How:
    """How it is attributed, and what becomes of the scores."""

    source_language: Annotated[
        str | None,
        typer.Option(help="Of M2M100 and NLLB: the code of the language of the prompts, such as en or eng_Latn."),
    ] = None
    target_language: Annotated[
        str | None,
        typer.Option(help="Of translation models: the code of the language to write, such as fr or fra_Latn."),
    ] = None
    method: Annotated[str, typer.Option(help=f"How: {', '.join(METHODS)}.")] = "input_x_gradient"
    attributed_fn: Annotated[
        str | None,
        typer.Option(
            help="What is attributed: probability, logit, entropy, ..., or contrast_prob_diff, P(target) - P(foil). "
            "[default: contrast_prob_diff where every prompt has a foil, else probability]",
            show_default=False,
        ),
    ] = None
    contrast: Annotated[
        str, typer.Option(help="Where a foil is read: same_context, after the text itself; own_prefix, after its own.")
    ] = CONTRASTS[0]
    align: Annotated[
        str | None,
        typer.Option(help="'0:0,2:1': which token of the target is held against which of the foil, if lengths differ."),
    ] = None
    steps: Annotated[
        str, typer.Option(help="Which tokens after the prompt are attributed: 'first:end', as in a slice; '0:1'.")
    ] = ":"
    new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens the model writes where no target is given.")] = 20
    step_scores: Annotated[
        list[str] | None,
        typer.Option("--step-score", help="Also report this function of each step; may be given several times."),
    ] = None
    layers: Annotated[
        str | None,
        typer.Option(
            help="Of layer methods and attention: '3,7', '0:20:5', or activations: 'mlp_out', 'resid_post.3'. "
            "[default: all; of attention the last]",
            show_default=False,
        ),
    ] = None
    options: Annotated[
        list[str] | None,
        typer.Option("--option", help="Of the method, as n_steps=20 or baseline=mean; may be given several times."),
    ] = None
    aggregate: Annotated[
        str, typer.Option(help="What becomes of the width: sum (signed), mean, or l2 (without a sign).")
    ] = "sum"
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scores of a step as shares of the sum of their absolute values.")
    ] = False
    subwords: Annotated[bool, typer.Option("--subwords", help="Add up the tokens of each word.")] = False
    chat_template: Annotated[
        str, typer.Option(help="Of --examples that are not raw: 'model' (its own), or a text with {prompt} in it.")
    ] = MODEL_TEMPLATE

    def reduction(self) -> Reduction:
        """Return what becomes of the scores of a prompt."""
        return Reduction(choice("aggregate", self.aggregate, HOWS), self.normalize, self.subwords)

    def plan(self, default: str, with_foil: bool, batch_size: int) -> Callable[[Opened], Plan]:
        """Check what needs no model, and return what makes the plan once there is one.

        Args:
            default: what is attributed where no function is asked for.
            with_foil: a foil was given for the one prompt there is, so something has to read it.
            batch_size: points or texts side by side.
        """
        function = attributed_function(self.attributed_fn or default)
        reported = step_functions(self.step_scores or [])
        needs_foil = any(FUNCTIONS[name].contrast for name in (function, *reported))
        contrast = choice("contrast", self.contrast, CONTRASTS)
        start, end = _slice(self.steps)
        make = partial(
            plan_attribution,
            method=choice("method", self.method, METHODS),
            attributed_fn=function,
            contrast=contrast if needs_foil else None,
            with_foils=needs_foil or with_foil,
            step_scores=reported,
            start=start,
            end=end,
            batch_size=batch_size,
            max_new_tokens=self.new_tokens,
            options=_options(self.options or []),
        )

        def planned(opened: Opened) -> Plan:
            lm, tokenizer = opened.model, opened.tokenizer
            languages = languages_of(lm, tokenizer, self.source_language, self.target_language)
            return make(lm, tokenizer, layers=_layers(self.layers, lm), languages=languages)

        return planned


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where results go beside the run folder."""

    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, for Attribution.load.")
    ] = None
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a page to look at in a browser.")] = None
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files of --json and --html.")] = False

    def check(self) -> None:
        """Refuse files that are there, before anything is computed for them."""
        for file in (self.html_file, self.json_file):
            if file is not None and file.exists() and not self.overwrite:
                raise InputError(f"{file} is there already; give --overwrite to replace it, or another name")

    def write(self, found: Attribution) -> None:
        """Write what was asked for."""
        if self.json_file is not None:
            compress = self.json_file.suffix == ".gz"
            say(f"wrote {found.save(self.json_file, overwrite=self.overwrite, compress=compress)}")
        if self.html_file is not None:
            say(f"wrote {found.show(html=self.html_file, overwrite=self.overwrite)}")


def attribute_command(
    *,
    asked: Asked,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Run folder: table.csv, manifest.json. The same command continues it. "
            "[default: runs/attributions for --examples, none for --prompt]",
            show_default=False,
        ),
    ] = None,
    model: Model = "demo",
    how: How,
    files: Files,
    batch_size: Annotated[int, typer.Option(min=1, help="Points or perturbed texts read side by side.")] = 8,
    loading: Loading,
) -> None:
    """Ask which tokens, or which layers, decide what is written: one CSV row a prompt, written token and token before.

    interpret attribute --prompt "The capital of France is" --target Paris --foil London

    Stopped at any time, the same command goes on where it was. Exit code 3: done, but some prompts could not be
    attributed.
    """
    prompts = asked.prompts()
    alignment, reduction = _pairs(how.align), how.reduction()
    n_foils = sum(one.foil is not None for one in prompts)
    planned = how.plan(CONTRAST if n_foils == len(prompts) else PLAIN, asked.foil is not None, batch_size)
    files.check()
    opened = loading.open(model)
    plan = planned(opened)
    if 0 < n_foils < len(prompts) and how.attributed_fn is None:
        say(f"{n_foils} of {len(prompts)} prompts have a foil, which {PLAIN} does not read; {CONTRAST} does")
    questions = runs.questions(opened.tokenizer, prompts, how.chat_template)
    if asked.examples is None:
        runs.inputs_of(plan, questions[0], alignment)  # a mistake is said before a folder is made
    with _folder(asked, output) as (folder, kept):
        do_units(
            ATTRIBUTING,
            folder,
            TokenScore,
            lambda run: runs.write_attributions(run, plan, questions, reduction, alignment=alignment),
            units=[one.name for one in questions],
            identity=opened.identity | _identity(asked, how, plan),
            circumstances={**opened.circumstances, "examples": str(asked.examples), "batch_size": batch_size},
        )
        dropped = run_folder.read_manifest(folder)["dropped"]
        if dropped and not kept:
            raise InputError(dropped[questions[0].name])
        _write_and_show(folder, questions, dropped, files)
        if kept:
            tell_counts(ATTRIBUTING, folder)


def _identity(asked: Asked, how: How, plan: Plan) -> dict[str, Any]:
    """Return everything but the model that decides the numbers."""
    texts = asdict(asked)
    examples = texts.pop("examples")
    return {
        "command": "attribute",
        **texts,
        **asdict(how),
        "attributed_fn": plan.info.attributed_fn,
        "examples_sha256": None if examples is None else provenance.file_sha256(examples),
    }


@contextmanager
def _folder(asked: Asked, output: Path | None) -> Iterator[tuple[Path, bool]]:
    """Open a folder for the run, and tell whether it is kept: of one prompt only where a folder is given."""
    if output is None and asked.examples is None:
        with TemporaryDirectory() as folder:
            yield Path(folder), False
    else:
        yield output or Path("runs/attributions"), True


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


def _write_and_show(folder: Path, questions: Sequence[Question], dropped: Container[str], files: Files) -> None:
    """Write what was asked for beside the run, and show the first steps; no more than one prompt is held."""
    kept = [number for number, one in enumerate(questions) if one.name not in dropped]
    if kept:
        found = runs.collected(folder, kept)
        files.write(found)
        _show([questions[number] for number in kept], found)


def _show(questions: Sequence[Question], found: Attribution) -> None:
    """Show the first steps, and what did most to them."""
    info = found.info
    shown: list[tuple[str, ...]] = []
    prompts_left, steps_left = len(questions), 0
    for question, one in zip(questions, found.sequences, strict=True):
        rows = runs.token_scores(question, Attribution([one], info))
        of_steps = [list(of_one) for _, of_one in groupby(rows, key=lambda row: row.step)]
        room = MOST_SHOWN - len(shown)
        shown += [_cells(of_one, translated=one.source_tokens is not None) for of_one in of_steps[:room]]
        prompts_left, steps_left = prompts_left - 1, len(of_steps) - room
        if steps_left >= 0:
            break
    meaning = f", {info.contrast}" if info.contrast else ""
    header = ("prompt", "token", info.attributed_fn, "what did most to it")
    show_table(f"{title(found)}{meaning}, in: {info.unit}", header, shown)
    more = [_counted(count, noun) for count, noun in ((steps_left, "step"), (prompts_left, "prompt")) if count > 0]
    if more:
        tell(f"and {' and '.join(more)} more")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _cells(rows: Sequence[TokenScore], *, translated: bool) -> tuple[str, str, str, str]:
    """Return what is shown of one step: prompt, token, value, and what did most to it."""
    most = sorted(rows, key=lambda row: -abs(row.score))[:MOST_TOKENS]
    words = ", ".join(f"{_place(row, translated)} {row.score:+.3g}" for row in most)
    return rows[0].name, visible(rows[0].step_token), f"{rows[0].value:.3g}", words


def _place(row: TokenScore, translated: bool) -> str:
    """Name a token, the activation at it, and of a translation its side."""
    side = ("source " if row.in_prompt else "target ") if translated else ""
    return f"{side}{row.position} {visible(row.token)}" + (f" {row.activation}" if row.activation else "")
