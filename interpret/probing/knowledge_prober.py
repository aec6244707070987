"""Probe MLP neurons: which ones separate true from false statements, and which ones have similar neighbours."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.anatomy import anatomy_of, unwrapping
from interpret.errors import InputError
from interpret.finite import left_out, order, warn
from interpret.probing.effects import effect_sizes, permutation_p_values, q_values
from interpret.probing.neurons import Text, Token, count_neurons, neuron_values, reading_weights, scaled_neuron
from interpret.probing.show import NeuronEffects
from interpret.prompts.selectors import indices
from interpret.records import NeuronEffect
from interpret.work.progress import showing

Pairs = Sequence[tuple[Text, Text]]
_CHUNK_BYTES = 1 << 28


class KnowledgeProber:
    """Probes the MLP neurons of a model.

    Args:
        model: a causal LM of a supported family.
        tokenizer: the model's tokenizer.

    Raises:
        UnsupportedModelError: if the model's family is unknown.
    """

    @unwrapping
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        count_neurons(model, 0)
        self.model = model
        self.tokenizer = tokenizer

    def polysemantic_score(self, layer_idx: int, k_neighbors: int = 50) -> Tensor:
        """Return how similar the nearest neighbours of each neuron are in their input weights, [F] float32 on the CPU.

        Let u_j be the unit vector of the input weights of neuron j (``neurons.reading_weights``), N(i) the k neurons
        other than i with the largest u_i . u_j, and m_i the mean of their vectors. The score is
        ``norm(m_i) / mean over j in N(i) of norm(u_j - m_i)``: concentration over dispersion, the original definition
        of Arrakis, applied to neurons instead of hidden features. It is infinite, or as large as rounding allows, if
        all neighbours are equal, as in a group of more than k equal neurons. It is near ``1 / sqrt(k - 1)`` if their
        directions are independent, as random directions of a wide model are. High: many neurons read the same
        direction. Low: no other neuron reads a similar direction. The score describes the geometry of the weights, not
        how many meanings a neuron has; that requires its activations. A neuron with a weight that is not finite is
        nobody's neighbour, and its score is NaN.

        Args:
            layer_idx: the layer.
            k_neighbors: k. The default, 50, is large enough for a stable mean.

        Raises:
            InputError: for a layer outside the model, or if k is not from 2 to F - 1.
            UnsupportedModelError: if the weights are quantised or adapted.
        """
        unit = reading_weights(self.model, layer_idx)  # [F, D]
        if not 2 <= k_neighbors < len(unit):
            raise InputError(
                f"k_neighbors is {k_neighbors}; layer {layer_idx} has {len(unit)} neurons, so give 2 to {len(unit) - 1}"
            )
        size = max(1, _CHUNK_BYTES // (4 * (k_neighbors * unit.shape[1] + 2 * len(unit))))
        sound = unit.isfinite().all(dim=1)  # [F]
        scores = unit.new_empty(len(unit))  # filled in place: many small results would fragment the heap
        for first in range(0, len(unit), size):
            scores[first : first + size] = _concentration(unit, sound, first, first + size, k_neighbors)
        scores[~sound] = torch.nan
        warn(left_out(scores.cpu().nan_to_num(torch.nan, posinf=0), "neurons", "the neighbours of others"))
        return scores.cpu()

    def knowledge_probe(
        self,
        true_false_pairs: Pairs,
        neuron: tuple[int, int],
        *,
        token: Token = "last",
        n_permutations: int = 10_000,
        seed: int = 0,
        batch_size: int = 8,
    ) -> NeuronEffect:
        """Return how well one neuron separates the true from the false texts of pairs.

        Args:
            true_false_pairs: pairs of a true and a false text, each a string or its token ids, which may be a tensor
                [T] or [1, T]. A single pair gives the two activations, the means; effect sizes are then NaN.
            neuron: layer and index of the neuron.
            token: where the neuron is read: ``"last"``, ``"mean"``, ``"max"`` or a position (``neurons.Token``).
            n_permutations: the largest number of permutations; all are counted if there are no more.
            seed: random seed of the permutations.
            batch_size: number of texts per forward pass.

        Raises:
            InputError: for a layer or neuron outside the model, no pair, or a text without that token.
        """
        check_pairs(true_false_pairs, least=1)
        layer, number = neuron
        check_index("neuron", number, count_neurons(self.model, layer), f"layer {layer}")
        values = self._values(true_false_pairs, [layer], token, batch_size)[layer][:, number : number + 1]
        (effect,) = _effects(layer, values, n_permutations, seed, number)
        warn(not_tested([effect]))
        return effect

    def scan(
        self,
        true_false_pairs: Pairs,
        layers: str | int | Sequence[int],
        *,
        token: Token = "last",
        n_permutations: int = 10_000,
        seed: int = 0,
        batch_size: int = 8,
        progress: bool = True,
    ) -> NeuronEffects:
        """Probe all neurons of one or more layers in one pass over the texts.

        ``[e for e in effects if e.q_value <= 0.05]`` are the significant neurons at a false discovery rate of 5% over
        all neurons of the call. p is at least ``1 / (n_permutations + 1)`` and ``2 ** (1 - pairs)``: to find a few
        neurons among very many, use more permutations or more pairs.

        Args:
            true_false_pairs: at least two pairs of a true and a false text, each a string or its token ids.
            layers: a layer, a list of layers, or a selector such as ``"0:20:5"`` or ``"all"``.
            token: as in ``knowledge_probe``.
            n_permutations: as in ``knowledge_probe``.
            seed: as in ``knowledge_probe``.
            batch_size: as in ``knowledge_probe``.
            progress: show a progress bar while it runs, in a terminal or a notebook.

        Returns:
            The most significant neurons first; at equal p-values, the largest effect first. A neuron with an activation
            that is not finite has no statistics (NaN); it comes last, and does not change the q-values of the others.
            The list shows itself.

        Raises:
            InputError: for a layer outside the model, too few pairs, or a text without that token.
        """
        check_pairs(true_false_pairs)
        chosen = list(dict.fromkeys(indices("layer", layers, len(anatomy_of(self.model).layers))))
        if not chosen:
            raise InputError("layers is empty: name at least one layer")
        with showing("Reading neurons", shown=progress):
            values = self._values(true_false_pairs, chosen, token, batch_size)
        effects = NeuronEffects(ranked_effects(values.items(), n_permutations=n_permutations, seed=seed))
        warn(not_tested(effects))
        return effects

    def intervene(
        self, neuron: tuple[int, int], scale: float = 0.0, column: int | None = None
    ) -> AbstractContextManager[None]:
        """Multiply the activation of a neuron inside a ``with`` block; see ``neurons.scaled_neuron``."""
        return scaled_neuron(self.model, neuron, scale, column)

    def _values(self, pairs: Pairs, layers: Sequence[int], token: Token, batch_size: int) -> dict[int, Tensor]:
        """Return the activations of each layer's neurons, [2 * N, F], those on the true texts first."""
        texts = [true for true, _ in pairs] + [false for _, false in pairs]
        return neuron_values(self.model, self.tokenizer, texts, layers, token=token, batch_size=batch_size)


def check_pairs(pairs: Pairs, *, least: int = 2) -> None:
    """Check that there are enough pairs; by default two, so that a variance can be estimated.

    Raises:
        InputError: if there are fewer.
    """
    if len(pairs) < least:
        why = "to estimate the variance of the true and of the false texts" if least > 1 else "a true and a false text"
        raise InputError(
            f"true_false_pairs has {len(pairs)} pair{'s'[: len(pairs) != 1]}: give at least {least}, {why}"
        )


def ranked_effects(values: Iterable[tuple[int, Tensor]], *, n_permutations: int, seed: int) -> list[NeuronEffect]:
    """Compare the activations of neurons on true and on false texts.

    Args:
        values: (layer, activations) pairs; activations of the layer's neurons, [2 * N, F], on the true texts of N
            pairs, then on the false texts.
        n_permutations: as in ``KnowledgeProber.knowledge_probe``.
        seed: as in ``KnowledgeProber.knowledge_probe``.

    Returns:
        The most significant neurons first; at equal p-values, the largest effect first; last, those that were not
        tested, because an activation is not finite.

    Raises:
        InputError: if ``n_permutations`` is below 1.
    """
    effects = [effect for layer, of_layer in values for effect in _effects(layer, of_layer, n_permutations, seed)]
    adjusted = q_values(torch.tensor([effect.p_value for effect in effects], dtype=torch.float64))
    found = [replace(effect, q_value=q) for effect, q in zip(effects, adjusted.tolist(), strict=True)]
    return sorted(found, key=lambda effect: (order(effect.p_value), -abs(effect.hedges_g)))


def not_tested(effects: Sequence[NeuronEffect]) -> str:
    """Return a message that counts the neurons without statistics; "" if there are none."""
    return left_out([effect.p_value for effect in effects], "neurons", "the tests")


def _concentration(unit: Tensor, sound: Tensor, first: int, last: int, k: int) -> Tensor:
    """Return the scores of the neurons ``first`` to ``last - 1``, [C], given the unit vectors of all, [F, D].

    ``sound``, [F], is True for the neurons that may be neighbours.
    """
    similarity = unit[first:last] @ unit.t()  # [C, F]
    similarity.diagonal(first).fill_(-torch.inf)
    similarity[:, ~sound] = -torch.inf
    neighbours = unit[similarity.topk(k, dim=1).indices]  # [C, k, D]
    centre = neighbours.mean(dim=1, keepdim=True)
    return centre[:, 0].norm(dim=1) / neighbours.sub_(centre).norm(dim=2).mean(dim=1)


def _effects(layer: int, values: Tensor, n_permutations: int, seed: int, first: int = 0) -> list[NeuronEffect]:
    """Compare the first N rows of [2 * N, F] with the last N; feature 0 is neuron ``first``."""
    true, false = values.chunk(2)
    undefined = torch.full(true.shape[1:], torch.nan, dtype=torch.float64)
    d, g = effect_sizes(true, false) if len(true) > 1 else (undefined, undefined)
    p = permutation_p_values(true - false, n_permutations=n_permutations, seed=seed)
    means = (true.double().mean(dim=0), false.double().mean(dim=0))
    numbers = torch.stack([*means, d, g, p]).t().tolist()
    return [
        NeuronEffect(layer, first + index, true_mean, false_mean, d, g, p, p, len(true))
        for index, (true_mean, false_mean, d, g, p) in enumerate(numbers)
    ]
