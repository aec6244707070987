"""Find the prompts that activate a neuron most, which show what it detects (after Zeiler and Fergus, 2014).

Prompts are read once, as a stream; only the k best so far of each neuron are kept. Memory depends on k and on the
number of neurons, not on the number of prompts. Shapes: B prompts per batch, T tokens, N requested neurons of one
layer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.anatomy import batches, check_length, unwrapping
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, unknown
from interpret.finite import Tally, readable, warn
from interpret.probing.neurons import count_neurons, run_neurons
from interpret.prompts.chat import model_text
from interpret.prompts.prompts import Prompt
from interpret.prompts.tokens import TokenisedPrompt, tokenise

PerPrompt = Literal["max", "all"]
"""max: a prompt counts once, by the token with the largest activation. all: every token counts separately."""


@dataclass(frozen=True)
class TopActivation:
    """A token at which a neuron has one of its largest activations."""

    layer: int
    neuron: int
    rank: int
    """1 for the token with the largest activation."""
    prompt: int
    """Index of the prompt, from 0."""
    position: int
    """Position of the token in the prompt, from 0, special tokens included."""
    token: str
    activation: float
    """Activation of the neuron there: its input to the MLP's down projection."""
    text: str
    """The prompt as the model read it."""


Numbered = tuple[int, TokenisedPrompt]
"""Index of a prompt, and the prompt."""


@unwrapping
def top_activating(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[str | Prompt],
    neurons: Sequence[tuple[int, int]],
    *,
    k: int = 10,
    batch_size: int = 8,
    per_prompt: PerPrompt = "max",
) -> list[TopActivation]:
    """Return the k tokens of many prompts at which each given neuron has its largest activations.

    Only the tokens of a prompt's own text count, not those that the tokenizer or a chat template adds. Activations that
    are not finite are left out, and a warning counts them. Of equal
    activations, the earlier prompt comes first, then the earlier token; with different padding, activations that should
    be equal may differ by rounding.

    Args:
        model: a causal LM of a supported family; dropout is off.
        tokenizer: the model's tokenizer.
        prompts: texts, which are used unchanged, or prompts of a file (``interpret.load_examples``), which are put into
            the model's chat template unless they are raw. A generator is read batch by batch.
        neurons: (layer, index) pairs.
        k: number of tokens per neuron; all if there are fewer.
        batch_size: number of prompts per forward pass.
        per_prompt: ``"max"``: a prompt counts once, by the token with the largest activation; ``"all"``: every token
            counts separately.

    Returns:
        Neuron by neuron in the given order, the largest activation first; ``pandas.DataFrame`` converts it to a table.

    Raises:
        InputError: for a layer or neuron outside the model, no neurons, no prompts, k or a batch size below 1, or a
            prompt without tokens of its own or with more tokens than the model reads (raised when that prompt is
            reached).
    """
    by_layer = _check(model, neurons, k, batch_size, per_prompt)
    best = {layer: _Best(len(numbers), k) for layer, numbers in by_layer.items()}
    remembered: dict[int, TokenisedPrompt] = {}
    finite = Tally()
    with torch.no_grad(), evaluating(model):
        for batch in _batches(model, _tokenised(model, tokenizer, prompts), batch_size):
            for layer, value in _activations(model, [prompt for _, prompt in batch], by_layer, finite).items():
                best[layer].take(value, [index for index, _ in batch], per_prompt)
            kept = {index for layer in best.values() for index in layer.prompts.unique().tolist()}
            remembered = {index: prompt for index, prompt in [*remembered.items(), *batch] if index in kept}
    if not remembered:
        raise InputError("prompts is empty: give at least one")
    warn(finite.left_out("activations", "the ranking"))
    return [
        TopActivation(layer, number, rank, index, position, prompt.pieces[position], value, prompt.text)
        for layer, number in dict.fromkeys(neurons)
        for rank, value, index, position in best[layer].of(by_layer[layer][number])
        for prompt in [remembered[index]]
    ]


class _Best:
    """The k largest activations so far of the N neurons of a layer, with their prompts and positions, largest first."""

    def __init__(self, n_neurons: int, k: int) -> None:
        self._k = k
        self._values = torch.empty(n_neurons, 0)  # [N, at most k], as are the next two
        self.prompts = torch.empty(n_neurons, 0, dtype=torch.long)
        self._positions = torch.empty(n_neurons, 0, dtype=torch.long)

    def take(self, value: Tensor, indices: Sequence[int], per_prompt: PerPrompt) -> None:
        """Consider the activations on the next prompts, [B, T, N], -inf at tokens that do not count."""
        n_prompts, n_tokens, n_neurons = value.shape
        if per_prompt == "max":
            value, positions = value.max(dim=1)  # [B, N]; the first of equal values
        else:
            positions = torch.arange(n_tokens).repeat(n_prompts)[:, None].expand(-1, n_neurons)
            value = value.flatten(0, 1)  # [B * T, N]
        prompts = torch.tensor(indices).repeat_interleave(len(value) // n_prompts)
        values = torch.cat([self._values, value.t()], dim=1)
        # Earlier prompts come first, and a stable sort keeps the order of equal values.
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self._k]
        prompts = torch.cat([self.prompts, prompts.expand(n_neurons, -1)], dim=1)
        self._values, self.prompts = values.gather(1, order), prompts.gather(1, order)
        self._positions = torch.cat([self._positions, positions.t()], dim=1).gather(1, order)

    def of(self, neuron: int) -> Iterator[tuple[int, float, int, int]]:
        """Yield rank, activation, prompt and position of the best tokens of the n-th neuron."""
        columns = (self._values[neuron].tolist(), self.prompts[neuron].tolist(), self._positions[neuron].tolist())
        for rank, (value, prompt, position) in enumerate(zip(*columns, strict=True), start=1):
            if value != -torch.inf:
                yield rank, value, prompt, position


def _check(
    model: PreTrainedModel, neurons: Sequence[tuple[int, int]], k: int, batch_size: int, per_prompt: str
) -> dict[int, dict[int, int]]:
    """Check the arguments; return the neurons of each layer, each with its index among those requested."""
    if not neurons:
        raise InputError("neurons is empty: name at least one, as (layer, neuron)")
    if k < 1:
        raise InputError(f"k is {k}: ask for at least one prompt")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: give at least 1")
    if per_prompt not in get_args(PerPrompt):
        raise InputError(unknown("per_prompt", per_prompt, get_args(PerPrompt)))
    by_layer: dict[int, dict[int, int]] = {}
    for layer, number in neurons:
        check_index("neuron", number, count_neurons(model, layer), f"layer {layer}")
        places = by_layer.setdefault(layer, {})
        places.setdefault(number, len(places))
    return by_layer


def _tokenised(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str | Prompt]
) -> Iterator[Numbered]:
    """Tokenise prompts one by one."""
    if isinstance(prompts, str):
        raise InputError("prompts is a single text: give a list or another iterable of texts")
    for index, prompt in enumerate(prompts):
        asked = Prompt("", prompt, raw=True) if isinstance(prompt, str) else prompt
        try:
            tokenised = tokenise(tokenizer, model_text(tokenizer, asked))
        except InputError as error:
            raise InputError(f"prompts[{index}]: {error}") from None
        if not tokenised.content:
            raise InputError(f"prompts[{index}]: prompt {asked.text!r} has no tokens of its own")
        check_length(model, f"prompts[{index}]", len(tokenised.ids))
        yield index, tokenised


def _batches(model: PreTrainedModel, prompts: Iterator[Numbered], size: int) -> Iterator[list[Numbered]]:
    while some := list(islice(prompts, size)):
        for part in batches(model, [len(prompt.ids) for _, prompt in some], size):
            yield some[part]


def _activations(
    model: PreTrainedModel,
    prompts: Sequence[TokenisedPrompt],
    by_layer: Mapping[int, Mapping[int, int]],
    finite: Tally,
) -> dict[int, Tensor]:
    """Return the activations: layer -> [B, T, N] float32 on the CPU, -inf at tokens that do not count.

    Activations that are not finite are -inf, too; ``finite`` counts them.
    """
    rows = [prompt.ids for prompt in prompts]
    counts = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)  # [B, T]
    for row, prompt in zip(counts, prompts, strict=True):
        row[list(prompt.content)] = True
    activations: dict[int, Tensor] = {}

    def keep(layer: int, value: Tensor) -> None:
        chosen = value[..., list(by_layer[layer])].float().cpu()
        finite.add(chosen[counts])
        activations[layer] = readable(chosen).masked_fill(~counts[..., None], -torch.inf)

    run_neurons(model, rows, list(by_layer), keep)
    return activations
