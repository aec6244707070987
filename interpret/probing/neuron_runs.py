"""Compare all neurons of some layers on true and false texts, in a run folder.

A unit of the run reads some pairs of texts and stores the activations in ``values/``, one safetensors file per unit.
The last unit, ``effects``, compares all of them, writes the table and deletes the files. An interrupt costs one unit,
which is two batches of the default size.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.anatomy import anatomy_of, unwrapping
from interpret.device import TOO_LARGE, in_batches
from interpret.errors import InputError, RunError, one_line, unknown
from interpret.facts.files import FactFile
from interpret.facts.pairs import load_pairs, pairs_of_facts
from interpret.models.identity import model_circumstances, model_identity
from interpret.models.opening import Opening
from interpret.probing.knowledge_prober import check_pairs, ranked_effects
from interpret.probing.neurons import CHOICES, Token, check_texts, neuron_values
from interpret.prompts.selectors import select, selector_words
from interpret.records import NeuronEffect
from interpret.storage.disk import write_inside
from interpret.storage.provenance import file_sha256, objects_sha256
from interpret.storage.run import Run
from interpret.storage.run_folder import RunFolder
from interpret.work.loop import Work, fill_folder
from interpret.work.progress import say
from interpret.workers.settings import Workers, workers_of

NOT_READ = "not read"
READING = Work("Reading", "read", "parts", "pairs", (NOT_READ,))
VALUES, EFFECTS = "values", "effects"
PAIRS_A_UNIT = 8


@dataclass(frozen=True)
class NeuronPlan:
    """The neurons to probe, the texts, and the statistics."""

    pairs: Sequence[tuple[str, str]]
    """N pairs of a true and a false text."""
    layers: Sequence[int]
    token: Token = "last"
    """Where a neuron is read; see ``neurons.Token``."""
    n_permutations: int = 10_000
    seed: int = 0
    """Random seed of the permutations."""
    batch_size: int = 8
    """Number of texts per forward pass."""

    @property
    def units(self) -> list[str]:
        """The units of the run, in order."""
        return [f"pairs_{first + 1}" for first in range(0, len(self.pairs), PAIRS_A_UNIT)] + [EFFECTS]


@unwrapping
def run_neurons(
    model: PreTrainedModel | Opening,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Path | str | FactFile | Sequence[tuple[str, str]],
    output: Path | str,
    *,
    layers: str | Sequence[int] = "all",
    token: Token | str = NeuronPlan.token,
    permutations: int = NeuronPlan.n_permutations,
    seed: int = NeuronPlan.seed,
    batch_size: int = NeuronPlan.batch_size,
    workers: int | Workers = 1,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    circumstances: Mapping[str, Any] | None = None,
) -> RunFolder:
    """Find the MLP neurons whose activation differs between true and false texts, as ``interpret probe neurons`` does.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        texts: a file of pairs, such as examples/pairs.json; pairs of a true and a false text; or facts with foils, as
            ``load_facts`` returns them: the prompt with the answer is true, the prompt with the foil is false.
        output: the run folder; it gets ``table.csv``, the most significant neurons first, and ``manifest.json``.
        layers: the layers, as a list or a selector such as ``"3,7"``, ``"0:20:5"`` or ``"all"``.
        token: where a neuron is read: ``last``, ``mean``, ``max``, or a position.
        permutations: the largest number of permutations for a p-value.
        seed: random seed of the permutations.
        batch_size: number of texts per forward pass.
        workers: only 1: the last unit compares the values of all others.
        progress: show a progress bar on stderr.
        identity: further settings that determine the numbers, as JSON values; a run is resumed only if they are equal.
        circumstances: further entries of the manifest; they may change when the run is resumed.

    Returns:
        The run folder, for reading.

    Raises:
        InputError: if an argument or a text is invalid; then nothing has been written.
        RunError: if the folder contains another run, or cannot be written.
        UnsupportedModelError: if the model's family is unknown.

    Example:
        >>> run_neurons(model, tokenizer, "examples/pairs.json", "runs/neurons").to_frame()  # doctest: +SKIP
    """
    if isinstance(model, Opening) or tokenizer is None or not workers_of(workers).in_process:
        raise InputError("probe neurons runs in one process without workers, because it compares all texts at its end")
    pairs, sha256, path = _texts(texts)
    chosen = select("layer", selector_words(layers), len(anatomy_of(model).layers))
    plan = NeuronPlan(pairs, chosen, token_of(token), permutations, seed, batch_size)
    check_plan(tokenizer, plan)
    asked = {
        "command": "probe neurons",
        "texts_sha256": sha256,
        "layers": selector_words(layers),
        "token": str(token),
        "permutations": permutations,
        "seed": seed,
    }
    return fill_folder(
        READING,
        output,
        NeuronEffect,
        lambda run: write_neurons(run, model, tokenizer, plan),
        units=plan.units,
        others=(VALUES,),
        identity={**model_identity(model), **asked, **(identity or {})},
        circumstances={
            **model_circumstances(model),
            "texts": str(path),
            "batch_size": batch_size,
            **(circumstances or {}),
        },
        progress=progress,
    )


def _texts(
    texts: Path | str | FactFile | Sequence[tuple[str, str]],
) -> tuple[Sequence[tuple[str, str]], str, Path | str | None]:
    """Return the pairs of texts, their hash, and their file, if any."""
    if isinstance(texts, (str, Path)):
        return load_pairs(texts), file_sha256(texts), texts
    if isinstance(texts, FactFile):
        pairs, _ = pairs_of_facts(texts)
        return pairs, texts.sha256 or objects_sha256(texts.facts), texts.path
    return texts, objects_sha256(list(pair) for pair in texts), None


def token_of(token: Token | str) -> Token:
    """Parse ``last``, ``mean``, ``max`` or a position, which may be a string.

    Raises:
        InputError: if it is none of these.
    """
    if token in CHOICES:
        return cast(Token, token)
    try:
        return int(token)
    except ValueError:
        raise InputError(unknown("token", token, [*CHOICES, "a position such as 0 or -2"])) from None


def check_plan(tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan) -> None:
    """Check a plan, before a run folder is made.

    Raises:
        InputError: if there are fewer than two pairs, or a text does not have the token at which neurons are read.
    """
    check_pairs(plan.pairs)
    check_texts(tokenizer, [text for pair in plan.pairs for text in pair], plan.token)


def write_neurons(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan
) -> Iterator[str]:
    """Do the pending units of a run, and yield the name of each unit once it is saved.

    A pair that does not fit in memory is dropped with its reason.

    Args:
        run: an open run with the units ``plan.units`` and the record ``NeuronEffect``.
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.
        plan: the same whenever the run is resumed, except for the batch size.

    Raises:
        InputError: as ``check_plan``.
        RunError: if results cannot be written, or stored activations are missing; earlier units stay saved.
    """
    for unit in run.pending:
        if unit == EFFECTS:
            units = run.kept
            n_dropped = {name: len(pairs) for name, pairs in run.dropped_parts.items()}
            if sum(len(_pairs_of(plan, name)) - n_dropped.get(name, 0) for name in units) < 2:
                run.drop(unit, f"{NOT_READ}: fewer than two pairs fit in memory, so there is nothing to compare")
            else:
                values = ((layer, _stored(run.folder, units, layer)) for layer in plan.layers)
                run.write(unit, ranked_effects(values, n_permutations=plan.n_permutations, seed=plan.seed))
            shutil.rmtree(run.folder / VALUES, ignore_errors=True)
        else:
            _write_pairs(run, model, tokenizer, plan, unit)
        yield unit


def _write_pairs(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan, unit: str
) -> None:
    """Store the activations on the pairs of a unit; drop the pairs that do not fit in memory."""
    pairs = _pairs_of(plan, unit)
    found = list(in_batches(pairs, len(pairs), partial(_values, model, tokenizer, plan), say, lambda pair: None))
    dropped = {
        f"pair {number}": f"{NOT_READ}: a text of this pair {TOO_LARGE}"
        for number, values in enumerate(found, _first_of(plan, unit) + 1)
        if values is None
    }
    fitting = [values for values in found if values is not None]
    if not fitting:
        return run.drop(unit, next(iter(dropped.values())))
    data = {name: torch.stack([values[name] for values in fitting]) for name in fitting[0]}
    write_inside(run.folder, _file(unit), save(data))
    return run.write(unit, [], dropped_parts=dropped)


def _first_of(plan: NeuronPlan, unit: str) -> int:
    """Return the index of the first pair of a unit."""
    return plan.units.index(unit) * PAIRS_A_UNIT


def _pairs_of(plan: NeuronPlan, unit: str) -> Sequence[tuple[str, str]]:
    first = _first_of(plan, unit)
    return plan.pairs[first : first + PAIRS_A_UNIT]


def _values(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Tensor]]:
    """Return the activations on each pair: ``"{side}.{layer}"`` -> [F], side ``t`` (true) or ``f`` (false)."""
    texts = [true for true, _ in pairs] + [false for _, false in pairs]
    values = neuron_values(model, tokenizer, texts, plan.layers, token=plan.token, batch_size=plan.batch_size)
    return [
        {
            f"{side}.{layer}": value[row]
            for layer, value in values.items()
            for side, row in (("t", number), ("f", len(pairs) + number))
        }
        for number in range(len(pairs))
    ]


def _stored(folder: Path, units: Sequence[str], layer: int) -> Tensor:
    """Return the stored activations of a layer on all texts of some units, [2 * N, F], the true ones first."""
    parts: dict[str, list[Tensor]] = {"t": [], "f": []}
    for unit in units:
        file = folder / _file(unit)
        if not file.exists():
            raise RunError(f"{file} is missing, and the run needs it; start again in another --output folder")
        try:
            with safe_open(file, framework="pt") as tensors:
                for side, found in parts.items():
                    found.append(tensors.get_tensor(f"{side}.{layer}"))
        except (SafetensorError, OSError) as error:
            raise RunError(
                f"{file} cannot be read: {one_line(error)}; start again in another --output folder"
            ) from None
    return torch.cat([*parts["t"], *parts["f"]])


def _file(unit: str) -> str:
    return f"{VALUES}/{unit}.safetensors"
