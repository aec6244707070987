"""Prefix trees of texts, so that a model processes each shared prefix once.

A model's output after a prefix depends on the prefix alone, so texts with a common prefix can share its computation.
The tokens of a tree form one sequence, in which each token attends to the context, its ancestors and itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpret.device import index_on, sent
from interpret.engine.layers import Context, Past, Untapped, run_layer
from interpret.engine.trunk import Trunk

LARGEST_TREE = 256
"""Maximum number of tokens in a tree. Attention compares all pairs of its tokens, so a larger tree costs more than
the sharing saves."""


@dataclass(frozen=True)
class PrefixTree:
    """The prefixes of some texts: N nodes, each with the token that follows its parent's token."""

    ids: list[int]
    """[N] token ids."""
    parents: list[int]
    """[N], index of each node's parent, smaller than its own index; -1 for a text's first token."""
    depths: list[int]
    """[N], 0 for a text's first token."""

    def mask(self, n_before: int, window: int | None) -> Tensor:
        """Return the mask added to attention scores, [N, n_before + N].

        It is 0 for the context, the node's ancestors and the node itself, and -inf elsewhere.

        Args:
            n_before: number of context tokens.
            window: how many earlier tokens a token attends to; None if the number is not limited.
        """
        sees = torch.eye(len(self.ids), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        columns = n_before + torch.tensor(self.depths)
        sees = torch.cat([torch.ones(len(self.ids), n_before, dtype=torch.bool), sees], dim=1)
        if window is not None:
            sees &= columns[:, None] - torch.cat([torch.arange(n_before), columns]) <= window
        return torch.zeros(sees.shape).masked_fill(~sees, float("-inf"))


@dataclass(frozen=True)
class Grove:
    """A tree, and the nodes of some texts' tokens in it."""

    tree: PrefixTree
    places: dict[int, list[int]]
    """Index of a text -> the node of each of its tokens."""


def groves(texts: Sequence[Sequence[int]], largest: int = LARGEST_TREE) -> Iterator[Grove]:
    """Join texts into trees of at most ``largest`` nodes; a longer text gets a tree of its own.

    The texts are taken in lexicographic order of their tokens, in which neighbours share the longest prefixes.
    """
    tree = PrefixTree([], [], [])
    places: dict[int, list[int]] = {}
    last: list[int] = []  # nodes of the previous text
    for number in sorted(range(len(texts)), key=lambda number: list(texts[number])):
        text = texts[number]
        common = _common(tree, last, text)
        if places and len(tree.ids) + len(text) - common > largest:
            yield Grove(tree, places)
            tree, places, last, common = PrefixTree([], [], []), {}, [], 0
        path = last[:common]
        for depth in range(common, len(text)):
            tree.parents.append(path[-1] if path else -1)
            tree.ids.append(text[depth])
            tree.depths.append(depth)
            path.append(len(tree.ids) - 1)
        places[number] = last = path
    if places:
        yield Grove(tree, places)


def _common(tree: PrefixTree, nodes: Sequence[int], text: Sequence[int]) -> int:
    """Return how many of a text's first tokens are those of the nodes."""
    count = 0
    for node, token in zip(nodes, text, strict=False):
        if tree.ids[node] != token:
            break
        count += 1
    return count


def read_tree(trunk: Trunk, tree: PrefixTree, context: Sequence[Past]) -> Tensor:
    """Run a model on all prefixes of a tree, after a context.

    Args:
        trunk: the model's parts.
        tree: N prefixes.
        context: for each layer, keys and values of the context, [1, G, P, W].

    Returns:
        [N, D], the last layer's output at each node.
    """
    n_before = context[0].keys.shape[2]
    columns = n_before + index_on(trunk.device, tree.depths)
    windows = {layer.window for layer in trunk.layers}
    masks = {window: sent(tree.mask(n_before, window), trunk.device) for window in windows}
    cells = _entered(trunk, tree, n_before)[None, None]  # one cell, one sample
    for layer, past in zip(trunk.layers, context, strict=True):
        seen = Context(past, masks[layer.window].to(layer.device), columns.to(layer.device))
        cells, _ = run_layer(layer, cells.to(layer.device), seen, Untapped())
    return cells[0, 0]


def _entered(trunk: Trunk, tree: PrefixTree, n_before: int) -> Tensor:
    """Return the input of layer 0 at each node, [N, D]; it depends on the token and on its column."""
    depths = torch.tensor(tree.depths)
    order = depths.argsort()  # nodes of the same depth next to each other
    ids = sent(torch.tensor(tree.ids)[order], trunk.device)
    by_depth = trunk.embed(ids).split(depths.bincount().tolist())
    columns = range(n_before, n_before + len(by_depth))
    entered = [trunk.enter(x[:, None], column)[:, 0] for column, x in zip(columns, by_depth, strict=True)]
    return torch.cat(entered)[sent(order.argsort(), trunk.device)]
