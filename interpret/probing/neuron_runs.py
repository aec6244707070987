"""All neurons of some layers held against true and false texts, in a run folder.

The texts are read some pairs at a time, a unit each: what the neurons say goes to ``values/``, a safetensors file a
unit, and stays until the last unit, ``effects``, has compared them all and written the table.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.errors import RunError
from interpret.probing.knowledge_prober import check_pairs, ranked_effects
from interpret.probing.neurons import Token, check_texts, neuron_values
from interpret.storage.disk import replace_whole
from interpret.storage.run_folder import Run

VALUES, EFFECTS = "values", "effects"
PAIRS_A_UNIT = 32


@dataclass(frozen=True)
class NeuronPlan:
    """Which neurons are asked about what."""

    pairs: Sequence[tuple[str, str]]
    """N pairs of a true and a false text."""
    layers: Sequence[int]
    token: Token = "last"
    """Where in a text a neuron is read; see ``neurons.Token``."""
    n_permutations: int = 10_000
    seed: int = 0
    """Of the permutations."""
    batch_size: int = 8
    """Texts a forward pass."""

    @property
    def units(self) -> list[str]:
        """The units of the run, in order."""
        return [f"pairs_{first + 1}" for first in range(0, len(self.pairs), PAIRS_A_UNIT)] + [EFFECTS]


def check_plan(tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan) -> None:
    """Refuse, before a folder is made, what cannot be done.

    Raises:
        InputError: for fewer than two pairs, or a text without the token that is asked for.
    """
    check_pairs(plan.pairs)
    check_texts(tokenizer, [text for pair in plan.pairs for text in pair], plan.token)


def write_neurons(
    run: Run, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan
) -> Iterator[str]:
    """Do what is pending in a run, and yield the name of each unit as soon as it is safe.

    Args:
        run: open, over ``plan.units`` and ``NeuronEffect``.
        model: a causal LM of a known family.
        tokenizer: its own.
        plan: the same whenever the run is continued, but for its batch size.

    Raises:
        InputError: as ``check_plan``.
        RunError: if the disk does not take the results, or has lost some; the units before are safe.
    """
    folder = run.folder / VALUES
    if run.pending:
        folder.mkdir(exist_ok=True)
    for unit in run.pending:
        if unit == EFFECTS:
            values = ((layer, _stored(folder, plan, layer)) for layer in plan.layers)
            run.write(unit, ranked_effects(values, n_permutations=plan.n_permutations, seed=plan.seed))
            shutil.rmtree(folder, ignore_errors=True)
        else:
            first = plan.units.index(unit) * PAIRS_A_UNIT
            data = _values(model, tokenizer, plan, plan.pairs[first : first + PAIRS_A_UNIT])
            replace_whole(_file(folder, unit), save(data))
            run.write(unit, [])
        yield unit


def _values(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, plan: NeuronPlan, pairs: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """Return what the neurons say about some pairs: ``"{side}.{layer}"`` -> [n, F]."""
    texts = [true for true, _ in pairs] + [false for _, false in pairs]
    values = neuron_values(model, tokenizer, texts, plan.layers, token=plan.token, batch_size=plan.batch_size)
    halves = {layer: value.chunk(2) for layer, value in values.items()}
    return {f"{side}.{layer}": part for layer, both in halves.items() for side, part in zip("tf", both, strict=True)}


def _stored(folder: Path, plan: NeuronPlan, layer: int) -> Tensor:
    """Return what the neurons of a layer said about all texts, [2 * N, F], the true ones first."""
    parts: dict[str, list[Tensor]] = {"t": [], "f": []}
    for unit in plan.units[:-1]:
        file = _file(folder, unit)
        if not file.exists():
            raise RunError(f"{file} is gone, and the run needs it; start again in another --output folder")
        with safe_open(file, framework="pt") as tensors:
            for side, found in parts.items():
                found.append(tensors.get_tensor(f"{side}.{layer}"))
    return torch.cat([*parts["t"], *parts["f"]])


def _file(folder: Path, unit: str) -> Path:
    return folder / f"{unit}.safetensors"
