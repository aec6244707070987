"""Which of many prompts make a neuron say most: Zeiler and Fergus (2014) show what a feature is for in this way.

Prompts are read once, as they come, and only what may still be among the k best of a neuron is remembered: the
memory this takes depends on k and on the number of neurons, not on the number of prompts. Shapes: B prompts a batch,
T tokens, N neurons of one layer that are asked about.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.anatomy import longest_text
from interpret.anatomy.passes import evaluating
from interpret.errors import InputError, unknown
from interpret.probing.neurons import count_neurons, run_neurons
from interpret.prompts.chat import read_text
from interpret.prompts.prompts import Prompt
from interpret.prompts.tokens import TokenisedPrompt, tokenise

PerPrompt = Literal["max", "all"]
"""max: a prompt counts once, by the token at which the neuron says most. all: each token counts for itself."""


@dataclass(frozen=True)
class TopActivation:
    """A token at which a neuron says much."""

    layer: int
    neuron: int
    rank: int
    """1 for the token at which it says most."""
    prompt: int
    """Which of the prompts, from 0."""
    position: int
    """Of the token in the prompt, from 0 as the tokenizer gives them."""
    token: str
    activation: float
    """What the neuron says there: what enters the MLP's last projection."""
    text: str
    """The prompt, as the model read it."""


Numbered = tuple[int, TokenisedPrompt]
"""Which of the prompts it is, and the prompt."""


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
    """Return the k tokens, among those of many prompts, at which each of some neurons says most.

    Only the tokens of a prompt's own text count, not those that the tokenizer or a chat template puts around it.
    Among equal values the earlier prompt comes first, then the earlier token; prompts that are padded differently may
    differ by rounding where they say the same.

    Args:
        model: a causal LM of a known family; it is run without dropout.
        tokenizer: its own, a fast one.
        prompts: texts, read as they are, or prompts of a file (``interpret.load_examples``), put into the model's chat
            template unless they are raw. A generator is read batch by batch.
        neurons: layer and number of each.
        k: how many for each neuron; all there are, where they are fewer.
        batch_size: prompts a forward pass.
        per_prompt: ``"max"``: a prompt counts once, by the token at which the neuron says most; ``"all"``: each of
            its tokens counts for itself.

    Returns:
        Neuron by neuron as they were given, the largest value first; ``pandas.DataFrame`` makes a table of it.

    Raises:
        InputError: for a layer or neuron outside the model, no neurons or prompts, k or a batch size below 1, or a
            prompt that has no token of its own, or more tokens than the model reads, which is told when it is reached.
    """
    by_layer = _check(model, neurons, k, batch_size, per_prompt)
    best = {layer: _Best(len(numbers), k) for layer, numbers in by_layer.items()}
    remembered: dict[int, TokenisedPrompt] = {}
    with torch.no_grad(), evaluating(model):
        for batch in _batches(_tokenised(model, tokenizer, prompts), batch_size):
            for layer, value in _said(model, [prompt for _, prompt in batch], by_layer).items():
                best[layer].take(value, [index for index, _ in batch], per_prompt)
            kept = {index for layer in best.values() for index in layer.prompts.unique().tolist()}
            remembered = {index: prompt for index, prompt in [*remembered.items(), *batch] if index in kept}
    if not remembered:
        raise InputError("prompts is empty: give at least one")
    return [
        TopActivation(layer, number, rank, index, position, prompt.pieces[position], value, prompt.text)
        for layer, number in dict.fromkeys(neurons)
        for rank, value, index, position in best[layer].of(by_layer[layer][number])
        for prompt in [remembered[index]]
    ]


class _Best:
    """The k largest values so far of the N neurons of a layer, and where they stood, the largest first."""

    def __init__(self, n_neurons: int, k: int) -> None:
        self._k = k
        self._values = torch.empty(n_neurons, 0)  # [N, at most k], as those below
        self.prompts = torch.empty(n_neurons, 0, dtype=torch.long)
        self._positions = torch.empty(n_neurons, 0, dtype=torch.long)

    def take(self, value: Tensor, indices: Sequence[int], per_prompt: PerPrompt) -> None:
        """Consider what the neurons say about the next prompts, [B, T, N], -inf where nothing counts."""
        n_prompts, n_tokens, n_neurons = value.shape
        if per_prompt == "max":
            value, positions = value.max(dim=1)  # [B, N]; of equal values the first
        else:
            positions = torch.arange(n_tokens).repeat(n_prompts)[:, None].expand(-1, n_neurons)
            value = value.flatten(0, 1)  # [B * T, N]
        prompts = torch.tensor(indices).repeat_interleave(len(value) // n_prompts)
        values = torch.cat([self._values, value.t()], dim=1)
        # Earlier prompts stand before later ones, and a stable sort leaves equals in their order.
        order = values.argsort(dim=1, descending=True, stable=True)[:, : self._k]
        prompts = torch.cat([self.prompts, prompts.expand(n_neurons, -1)], dim=1)
        self._values, self.prompts = values.gather(1, order), prompts.gather(1, order)
        self._positions = torch.cat([self._positions, positions.t()], dim=1).gather(1, order)

    def of(self, neuron: int) -> Iterator[tuple[int, float, int, int]]:
        """Yield rank, value, prompt and position of the best of the n-th neuron."""
        columns = (self._values[neuron].tolist(), self.prompts[neuron].tolist(), self._positions[neuron].tolist())
        for rank, (value, prompt, position) in enumerate(zip(*columns, strict=True), start=1):
            if value != -torch.inf:
                yield rank, value, prompt, position


def _check(
    model: PreTrainedModel, neurons: Sequence[tuple[int, int]], k: int, batch_size: int, per_prompt: str
) -> dict[int, dict[int, int]]:
    """Return the neurons of each layer that is named, each with its place among them; refuse what is wrong."""
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
    """Tokenise prompts as they come."""
    if isinstance(prompts, str):
        raise InputError("prompts is a single text: give a list of texts, or whatever yields them")
    longest = longest_text(model)
    for index, prompt in enumerate(prompts):
        asked = Prompt("", prompt, raw=True) if isinstance(prompt, str) else prompt
        try:
            tokenised = tokenise(tokenizer, read_text(tokenizer, asked))
        except InputError as error:
            raise InputError(f"prompts[{index}]: {error}") from None
        if not tokenised.content:
            raise InputError(f"prompts[{index}]: prompt {asked.text!r} has no tokens of its own")
        if len(tokenised.ids) > longest:
            raise InputError(f"prompts[{index}] has {len(tokenised.ids)} tokens; this model reads at most {longest}")
        yield index, tokenised


def _batches(prompts: Iterator[Numbered], size: int) -> Iterator[list[Numbered]]:
    while batch := list(islice(prompts, size)):
        yield batch


def _said(
    model: PreTrainedModel, prompts: Sequence[TokenisedPrompt], by_layer: Mapping[int, Mapping[int, int]]
) -> dict[int, Tensor]:
    """Return what the neurons say, layer -> [B, T, N] float32 on the CPU, -inf where nothing counts."""
    rows = [prompt.ids for prompt in prompts]
    counts = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)  # [B, T]
    for row, prompt in zip(counts, prompts, strict=True):
        row[list(prompt.content)] = True
    said: dict[int, Tensor] = {}

    def keep(layer: int, value: Tensor) -> None:
        said[layer] = value[..., list(by_layer[layer])].float().cpu().masked_fill(~counts[..., None], -torch.inf)

    run_neurons(model, rows, list(by_layer), keep)
    return said
