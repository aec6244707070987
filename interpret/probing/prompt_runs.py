"""Probe prompts into a run folder, one unit per prompt: lenses, direct logit attribution, attention heads.

A prompt takes one forward pass or a few, so no parts of it are stored: an interrupt costs one prompt.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import unwrapping
from interpret.device import TOO_LARGE, unless_too_large
from interpret.errors import InputError, ModelError, unknown
from interpret.models.opening import Opening
from interpret.probing.lens_maps import LENS_FILE, lens_manifest
from interpret.probing.registry import HEADS, LENS, LOGIT, LOGITS, PROBES, TOP, Probe, Probed, Reader
from interpret.prompts.chat import model_text
from interpret.prompts.prompts import MODEL_TEMPLATE, Prompt, raw_unless_said
from interpret.prompts.tokens import following, select_tokens, tokenise
from interpret.storage.outcomes import Dropped, Kept
from interpret.storage.parts import StoredParts
from interpret.storage.provenance import file_sha256
from interpret.storage.run_folder import RunFolder
from interpret.work.inputs import Examples, prompt_list
from interpret.work.loop import Work
from interpret.workers.jobs import Analysis, Executor, Finished, Say, Step, Task
from interpret.workers.prompt_job import PromptJob
from interpret.workers.runs import run_job
from interpret.workers.settings import Workers

NOT_PROBED = "not probed"
PROBING = Work("Probing", "probed", "prompts", failures=(NOT_PROBED,))


@unwrapping
def run_probe(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    probe: str | Probe,
    examples: Examples,
    output: Path | str,
    *,
    tokens: str = "last",
    raw: bool = False,
    chat_template: str | None = None,
    options: Mapping[str, Any] | None = None,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Probe prompts into a run folder, as ``interpret probe`` does; the same call resumes an interrupted run.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        probe: a name of ``PROBES``, or a probe.
        examples: a file of prompts, such as examples/examples.json; prompts with different names; or rows as dicts,
            such as a Hugging Face data set.
        output: the run folder; it gets ``table.csv`` and ``manifest.json``.
        tokens: the tokens at which prompts are probed: ``last``, ``subject_last``, ``0,-1``, ``2:6``, ``content``,
            ``all``; probes with ``at_tokens=False`` do not use it.
        raw: read prompts that do not say ``raw`` themselves as they are.
        chat_template: make these prompts the user's message of a chat: ``model``, or a text that contains
            ``{prompt}``. With neither: see ``Prompt.raw``, and the model's own template.
        options: options of the probe by name, as JSON values.
        workers: number of processes that open the model and share the prompts, or ``Workers``. They open it as
            ``interpret.load`` has opened it; it may also be an ``Opening``, with None for ``tokenizer``.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values, such as the version of your own probe; a
            run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: if an argument or a prompt is invalid. Prompts that cannot be probed are dropped with the reason.
        RunError: if the folder contains another run, or cannot be written.
        UnsupportedModelError: if the model's family is unknown.

    Example:
        >>> run_probe(model, tokenizer, "lens", "examples.json", "runs/lens").to_frame()  # doctest: +SKIP
    """
    probe = probe_of(probe)
    said = raw_unless_said(raw=raw, chat_template=chat_template)
    template = MODEL_TEMPLATE if chat_template is None else chat_template
    job = ProbeJob(prompt_list(examples, raw=said), tokens, probe, template, options or {}, said)
    return run_job(
        job,
        model,
        tokenizer,
        output,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


@dataclass(frozen=True)
class ProbeJob(PromptJob):
    """Prompts to probe, one unit per prompt."""

    probe: Probe
    chat_template: str
    """Chat template of prompts that are not raw."""
    options: Mapping[str, Any]
    """Options of the probe."""
    said: bool | None
    """Whether prompts that do not say so themselves are raw."""

    def __post_init__(self) -> None:
        """Check the names of the options, and the tokens.

        Raises:
            InputError: for an option that the probe does not have, or if no prompt has the selected tokens.
        """
        self.probe.check_options(self.options)
        self.lacking  # noqa: B018 - raises

    @property
    def work(self) -> Work:
        """The words for messages."""
        return PROBING

    @property
    def record_type(self) -> type:
        """The record type of the table."""
        return self.probe.record

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the rows depend on except the model."""
        return {
            "command": f"probe {self.probe.name}",
            **({"tokens": self.selector} if self.probe.at_tokens else {}),
            "chat_template": self.chat_template,
            **({} if self.said is None else {"raw": self.said}),
            "examples_sha256": self.found.sha256,
            **self.probe.options(),
            **self.options,
        }

    @property
    def circumstances(self) -> dict[str, Any]:
        """What is recorded besides the identity."""
        return {"examples": self.found.path}

    def open(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, say: Say) -> "ProbeAnalysis":
        """Prepare the probe, and tokenise the prompts.

        Raises:
            InputError: if an option or a prompt is invalid.
            UnsupportedModelError: if the model's family is unknown.
        """
        read = self.probe.read(model, tokenizer, **self.options)
        asked = probed_prompts(tokenizer, self.kept, tokens=self.selector, chat_template=self.chat_template)
        return ProbeAnalysis(self.probe.record, read, asked)

    def tasks(self, executor: Executor, wanted: Collection[str]) -> Iterator[Task]:
        """Yield a task per wanted prompt: its number among those that can be read."""
        return (Task((one.name,), number) for number, one in enumerate(self.kept) if one.name in wanted)

    def count(self, executor: Executor, units: Sequence[str]) -> int:
        """Return the number of steps: one per prompt."""
        return len(units)


@unwrapping
def run_lens(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Examples,
    output: Path | str,
    *,
    tokens: str = "last",
    top: int = TOP,
    lenses: Sequence[str] = (LOGIT,),
    tuned: Path | str | None = None,
    raw: bool = False,
    chat_template: str | None = None,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Read prompts by lenses, as ``interpret probe lens`` does: the most likely tokens after every layer.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``; ``target`` and ``foil`` of a prompt are followed.
        output: the run folder.
        tokens: as in ``run_probe``.
        top: number of most likely tokens to list.
        lenses: ``logit``, ``tuned`` or ``identity``, or several; ``tuned_lens`` and ``identity_lens`` describe them.
        tuned: the run folder of ``train_lens``, for the lens ``tuned``.
        raw: as in ``run_probe``.
        chat_template: as in ``run_probe``.
        workers: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        LENS,
        examples,
        output,
        tokens=tokens,
        raw=raw,
        chat_template=chat_template,
        options=lens_options(top, lenses, tuned),
        workers=workers,
        progress=progress,
        identity={**lens_identity(tuned), **(identity or {})},
        circumstances=circumstances,
    )


def lens_options(top: int, lenses: Sequence[str], tuned: Path | str | None) -> dict[str, Any]:
    """Return the options of the probe ``lens``, as JSON values."""
    return {"top": top, "lenses": list(lenses), "tuned": None if tuned is None else str(tuned)}


def lens_identity(tuned: Path | str | None) -> dict[str, Any]:
    """Return what determines the readings of a tuned lens besides its folder: the hash of its maps.

    Raises:
        InputError: if the folder is not that of a finished training.
        RunError: if it is not a run folder, or the maps cannot be read.
    """
    if tuned is None:
        return {}
    lens_manifest(tuned)
    return {"tuned_sha256": file_sha256(Path(tuned) / LENS_FILE)}


@unwrapping
def run_logits(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Examples,
    output: Path | str,
    *,
    raw: bool = False,
    chat_template: str | None = None,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Decompose the logit of the answers to prompts among heads and MLPs, as ``interpret probe logits`` does.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``. The answer is the first token of ``target``, or the most likely token; the logit
            of a ``foil`` is decomposed as well.
        output: the run folder.
        raw: as in ``run_probe``.
        chat_template: as in ``run_probe``.
        workers: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        LOGITS,
        examples,
        output,
        raw=raw,
        chat_template=chat_template,
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


@unwrapping
def run_heads(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Examples,
    output: Path | str,
    *,
    tokens: str = "last",
    top: int = TOP,
    raw: bool = False,
    chat_template: str | None = None,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """List the tokens that every head attends to, as ``interpret probe heads`` does.

    Args:
        model: a causal LM of a supported family, in evaluation mode.
        tokenizer: the model's tokenizer.
        examples: as in ``run_probe``.
        output: the run folder.
        tokens: as in ``run_probe``.
        top: number of tokens to list per head.
        raw: as in ``run_probe``.
        chat_template: as in ``run_probe``.
        workers: as in ``run_probe``.
        progress: as in ``run_probe``.
        identity: as in ``run_probe``.
        circumstances: as in ``run_probe``.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: as ``run_probe``.
        RunError: as ``run_probe``.
    """
    return run_probe(
        model,
        tokenizer,
        HEADS,
        examples,
        output,
        tokens=tokens,
        raw=raw,
        chat_template=chat_template,
        options={"top": top},
        workers=workers,
        progress=progress,
        identity=identity,
        circumstances=circumstances,
    )


def probe_of(probe: str | Probe) -> Probe:
    """Return a probe by its name.

    Raises:
        InputError: if no probe of this name is registered.
    """
    if isinstance(probe, Probe):
        return probe
    if probe not in PROBES:
        raise InputError(unknown("probe", probe, PROBES))
    return PROBES[probe]


def probed_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    tokens: str = "last",
    chat_template: str = MODEL_TEMPLATE,
) -> list[Probed]:
    """Tokenise prompts and find the selected tokens; all prompts are checked before any work is done.

    Args:
        tokenizer: the model's tokenizer.
        prompts: raw prompts stay unchanged, others become the user's message of a chat.
        tokens: a selector, see ``tokens.select_tokens``.
        chat_template: as in ``chat.wrap``.

    Raises:
        InputError: if a prompt does not fit; the message names it.
    """
    found = []
    for prompt in prompts:
        try:
            text = model_text(tokenizer, prompt, chat_template)
            tokenised = tokenise(tokenizer, text, prompt.subject)
            given = {"target": prompt.target, "foil": prompt.foil}
            followed = {
                key: following(tokenizer, text, one, what=key)[0] for key, one in given.items() if one is not None
            }
            found.append(Probed(prompt.name, tokenised, select_tokens(tokens, tokenised), followed))
        except InputError as error:
            raise InputError(f"prompt {prompt.name}: {error}") from None
    return found


@dataclass(frozen=True)
class ProbeAnalysis(Analysis):
    """Probes prompts one at a time, so that the numbers do not depend on where a run was interrupted."""

    record_type: type
    read: Reader
    asked: Sequence[Probed]

    def do(self, what: int, parts: StoredParts) -> Iterator[Step]:
        """Probe the prompt of a number; if it cannot be probed, it is dropped with the reason."""
        one = self.asked[what]
        try:
            rows = unless_too_large(partial(self.read, one))
        except (InputError, ModelError) as error:  # ModelError: it does not fit in memory
            yield Finished(one.name, Dropped(f"{NOT_PROBED}: {error}"))
            return
        if rows is None:
            yield Finished(one.name, Dropped(f"{NOT_PROBED}: a prompt of {len(one.tokens.ids)} tokens {TOO_LARGE}"))
        else:
            yield Finished(one.name, Kept.of(self.record_type, rows))
