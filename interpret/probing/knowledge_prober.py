"""What single MLP neurons know: which tell true statements from false ones, and which stand among others like them."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interpret.activations.edits import check_index
from interpret.errors import InputError
from interpret.probing.effects import effect_sizes, permutation_p_values, q_values
from interpret.probing.neurons import Token, count_neurons, neuron_values, reading_weights, scaled_neuron
from interpret.records import NeuronEffect

Pairs = Sequence[tuple[str, str]]
_CHUNK_BYTES = 1 << 28


class KnowledgeProber:
    """Probes the MLP neurons of a model.

    Args:
        model: a causal LM of a known family.
        tokenizer: its own.

    Raises:
        UnsupportedModelError: for a model of no known family.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        count_neurons(model, 0)
        self.model = model
        self.tokenizer = tokenizer

    def polysemantic_score(self, layer_idx: int, k_neighbors: int = 50) -> Tensor:
        """Return how closely the nearest neurons of each neuron agree in what they read, [F] float32 on the CPU.

        Let u_j be the unit vector by which neuron j of the layer reads its input (``neurons.reading_weights``), N(i)
        the k neurons other than i with the largest u_i . u_j, and m_i their mean. The score is
        ``norm(m_i) / mean over j in N(i) of norm(u_j - m_i)``: concentration over dispersion, the definition Arrakis
        set out with, over neurons and not over hidden features. It is infinite, or as large as rounding lets it be,
        where all neighbours are one, as in a block of more than k equal neurons, and near ``1 / sqrt(k - 1)`` where
        they point independently, as random directions of a wide model do. High: the neuron belongs to a crowd that
        reads the same. Low: nothing reads what it does. It tells how weights lie, not how many meanings a neuron has;
        that takes its activations.

        Args:
            layer_idx: the layer.
            k_neighbors: k. The default, 50, is large enough for a mean to be stable.

        Raises:
            InputError: for a layer outside the model, or k not from 2 to F - 1.
            UnsupportedModelError: for quantised or adapted weights.
        """
        unit = reading_weights(self.model, layer_idx)  # [F, D]
        if not 2 <= k_neighbors < len(unit):
            raise InputError(
                f"k_neighbors is {k_neighbors}; layer {layer_idx} has {len(unit)} neurons, so give 2 to {len(unit) - 1}"
            )
        size = max(1, _CHUNK_BYTES // (4 * (k_neighbors * unit.shape[1] + 2 * len(unit))))
        scores = unit.new_empty(len(unit))  # filled in place: small results kept in between scatter the heap
        for first in range(0, len(unit), size):
            scores[first : first + size] = _concentration(unit, first, first + size, k_neighbors)
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
        """Return how one neuron tells the true from the false texts of some pairs.

        Args:
            true_false_pairs: at least two pairs of a true and a false text.
            neuron: layer and number.
            token: where the neuron is read: ``"last"``, ``"mean"``, ``"max"`` or a position (``neurons.Token``).
            n_permutations: how many permutations to draw; all, where there are no more.
            seed: of the draw.
            batch_size: texts a forward pass.

        Raises:
            InputError: for a layer or neuron outside the model, too few pairs, or a text without the token.
        """
        layer, number = neuron
        check_index("neuron", number, count_neurons(self.model, layer), f"layer {layer}")
        values = self._values(true_false_pairs, [layer], token, batch_size)[layer][:, number : number + 1]
        return _effects(layer, values, n_permutations, seed, number)[0]

    def scan(
        self,
        true_false_pairs: Pairs,
        layers: int | Sequence[int],
        *,
        token: Token = "last",
        n_permutations: int = 10_000,
        seed: int = 0,
        batch_size: int = 8,
    ) -> list[NeuronEffect]:
        """Probe all neurons of one or more layers in one pass over the texts; the surest, then the largest, first.

        ``[e for e in effects if e.q_value <= 0.05]`` are the neurons called different at a false discovery rate of 5%
        over all neurons of the call. As p is at least ``1 / (n_permutations + 1)``, and ``2 ** (1 - pairs)``, a rare
        neuron among very many needs more permutations, or more pairs, to be found.

        Args:
            true_false_pairs: at least two pairs of a true and a false text.
            layers: a layer, or several.
            token: as in ``knowledge_probe``.
            n_permutations: as in ``knowledge_probe``.
            seed: as in ``knowledge_probe``.
            batch_size: as in ``knowledge_probe``.

        Raises:
            InputError: for a layer outside the model, too few pairs, or a text without the token.
        """
        chosen = [layers] if isinstance(layers, int) else list(dict.fromkeys(layers))
        if not chosen:
            raise InputError("layers is empty: name at least one layer")
        values = self._values(true_false_pairs, chosen, token, batch_size)
        return ranked_effects(values.items(), n_permutations=n_permutations, seed=seed)

    def intervene(
        self, neuron: tuple[int, int], scale: float = 0.0, column: int | None = None
    ) -> AbstractContextManager[None]:
        """Multiply what a neuron says inside a ``with`` block; see ``neurons.scaled_neuron``."""
        return scaled_neuron(self.model, neuron, scale, column)

    def _values(self, pairs: Pairs, layers: Sequence[int], token: Token, batch_size: int) -> dict[int, Tensor]:
        """Return what the neurons of each layer say, [2 * N, F], the true texts first."""
        check_pairs(pairs)
        texts = [true for true, _ in pairs] + [false for _, false in pairs]
        return neuron_values(self.model, self.tokenizer, texts, layers, token=token, batch_size=batch_size)


def check_pairs(pairs: Pairs) -> None:
    """Refuse fewer than two pairs, between which nothing varies.

    Raises:
        InputError: for fewer.
    """
    if len(pairs) < 2:
        raise InputError(
            f"true_false_pairs holds {len(pairs)} pair{'s'[: len(pairs) != 1]}: the true and the false set need at "
            "least 2 texts each, or there is no spread to compare with"
        )


def ranked_effects(values: Iterable[tuple[int, Tensor]], *, n_permutations: int, seed: int) -> list[NeuronEffect]:
    """Compare what neurons say about true and about false texts; the surest, then the largest, first.

    Args:
        values: layer by layer, what its neurons say, [2 * N, F]: about the true texts of N pairs, then the false.
        n_permutations: as in ``KnowledgeProber.knowledge_probe``.
        seed: as there.

    Raises:
        InputError: if ``n_permutations`` is below 1.
    """
    effects = [effect for layer, of_layer in values for effect in _effects(layer, of_layer, n_permutations, seed)]
    adjusted = q_values(torch.tensor([effect.p_value for effect in effects], dtype=torch.float64))
    found = [replace(effect, q_value=q) for effect, q in zip(effects, adjusted.tolist(), strict=True)]
    return sorted(found, key=lambda effect: (effect.p_value, -abs(effect.hedges_g)))


def _concentration(unit: Tensor, first: int, last: int, k: int) -> Tensor:
    """Return the scores of the neurons ``first`` to ``last``, [C], for the unit vectors of all, [F, D]."""
    similarity = unit[first:last] @ unit.t()  # [C, F]
    similarity.diagonal(first).fill_(-torch.inf)
    neighbours = unit[similarity.topk(k, dim=1).indices]  # [C, k, D]
    centre = neighbours.mean(dim=1, keepdim=True)
    return centre[:, 0].norm(dim=1) / neighbours.sub_(centre).norm(dim=2).mean(dim=1)


def _effects(layer: int, values: Tensor, n_permutations: int, seed: int, first: int = 0) -> list[NeuronEffect]:
    """Compare the upper half of [2 * N, F] with the lower; feature 0 is neuron ``first``."""
    true, false = values.chunk(2)
    d, g = effect_sizes(true, false)
    p = permutation_p_values(true - false, n_permutations=n_permutations, seed=seed)
    means = (true.double().mean(dim=0), false.double().mean(dim=0))
    numbers = torch.stack([*means, d, g, p]).t().tolist()
    return [
        NeuronEffect(layer, first + index, true_mean, false_mean, d, g, p, p, len(true))
        for index, (true_mean, false_mean, d, g, p) in enumerate(numbers)
    ]
