"""One column of a sweep: cells with the same token, site, pins and knockout, run through the layers together.

Where attention is knocked out, each cell has an attention mask of its own (Geva et al. 2023, arXiv:2304.14767).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpret.device import index_on, sent
from interpret.engine.layers import Context, Layer, Past, Point, run_layer
from interpret.engine.masks import masks_for
from interpret.engine.recording import RecordedRun
from interpret.sweep.cells import ATTENTION, UNITS, Cell


@dataclass(frozen=True)
class Column:
    """Cells with the same token, site, pins and knockout, ordered by their first layers."""

    cells: tuple[Cell, ...]
    indices: tuple[int, ...]
    """Indices of the cells in the sweep."""

    @property
    def token(self) -> int:
        """The token that all cells restore."""
        return self.cells[0].token

    def pieces(self, size: int) -> "Iterator[Column]":
        """Yield columns of at most ``size`` cells, in order."""
        for start in range(0, len(self.cells), size):
            end = start + size
            yield Column(self.cells[start:end], self.indices[start:end])

    def layer_tokens(self, n_layers: int, n_tokens: int, n_read: int) -> int:
        """Return how many tokens of one sample pass through layers, summed over cells and layers."""
        computed = n_tokens - self.token
        total = 0
        for cell in self.cells:
            whole = max(0, n_layers - 2 - cell.start) * computed
            last = min(computed, n_read) if cell.start < n_layers - 1 else 0
            total += whole + last + (cell.site != "resid_post")
        return total


@dataclass(frozen=True)
class _Chunk:
    """Cells that are computed together."""

    cells: tuple[Cell, ...]
    x: Tensor
    """[C, S, N, D], the latest layer's output at tokens t to T; after the last layer, only at the tokens read."""


def run_column(
    layers: Sequence[Layer], base: RecordedRun, donor: RecordedRun, column: Column, *, n_read: int, chunk: int
) -> Iterator[Tensor]:
    """Run a column through all layers.

    Args:
        layers: the model's layers.
        base: the runs that are patched, of S samples.
        donor: the runs whose values are restored.
        column: the cells to run.
        n_read: number of final positions that are needed after the last layer.
        chunk: maximum number of cells computed together.

    Yields:
        The last layer's output for C cells, [C, S, M, D], where M is the number of positions read from the column's
        token on. Together, the outputs contain all cells in their order.
    """
    n_tokens, token = base.states[0].shape[1], column.token
    masks = masks_for(layers, n_tokens - token, token, base.states[0])
    chunks: list[_Chunk] = []
    for index in range(-1, len(layers)):
        first = max(token, n_tokens - n_read) - token if index == len(layers) - 1 else 0
        step = _Step(layers[max(0, index)], index, token, masks[index], first, base, donor)
        chunks = [_Chunk(old.cells, step.run(old)) for old in chunks]
        joining = tuple(cell for cell in column.cells if cell.start == index)
        for some in _pieces(joining, chunk):
            new = _Chunk(some, step.joined(some))
            if chunks and len(chunks[-1].cells) + len(some) <= chunk:
                last = chunks.pop()
                new = _Chunk(last.cells + some, torch.cat([last.x, new.x.to(last.x.device)]))
            chunks.append(new)
    for done in chunks:
        yield done.x


def _pieces(cells: tuple[Cell, ...], size: int) -> Iterator[tuple[Cell, ...]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


@dataclass(frozen=True)
class _Step:
    """One layer of a column."""

    layer: Layer
    index: int
    """Index of the layer; -1 is the input of layer 0, at which cells can only start."""
    token: int
    mask: Tensor
    """[N, T], added to the attention scores of the tokens from t on."""
    first: int
    """The layer's output is computed only from this one of the column's tokens on."""
    base: RecordedRun
    donor: RecordedRun

    def run(self, chunk: _Chunk) -> Tensor:
        """Run cells that started in an earlier layer; return their next state, [C, S, N - first, D]."""
        return self._through(chunk.cells, chunk.x, self.first)

    def joined(self, cells: tuple[Cell, ...]) -> Tensor:
        """Return the state after this layer for cells that start in it: the base's, except at the column's token."""
        x = self.base.states[self.index + 1][:, self.token :].expand(len(cells), -1, -1, -1).clone()
        if cells[0].site == "resid_post":
            x[:, :, 0] = self.donor.states[self.index + 1][:, self.token]
        else:
            before = self.base.states[self.index][:, self.token : self.token + 1]
            x[:, :, :1] = self._through(cells, before.expand(len(cells), -1, -1, -1), 0)
        return x

    def _through(self, cells: tuple[Cell, ...], x: Tensor, first: int) -> Tensor:
        """Run the layer on x, [C, S, N, D], the tokens from t on, and write what the cells restore and hold."""
        x = x.to(self.layer.device)
        n_tokens = x.shape[2]
        keys, values = (
            part[:, :, : self.token] for part in (self.base.past[self.index].keys, self.base.past[self.index].values)
        )
        mask = self._knocked_out(cells, self.mask[:n_tokens, : self.token + n_tokens].to(x.device))
        context = Context(Past(keys, values), mask, slice(self.token, self.token + n_tokens))
        output, _ = run_layer(self.layer, x, context, _Writer(cells, self, n_tokens), first)
        rows = [row for row, cell in enumerate(cells) if cell.restores("resid_post", self.index)]
        if rows and not first:
            output[_index(rows, output), :, 0] = self.donor.states[self.index + 1][:, self.token]
        return output

    def _knocked_out(self, cells: tuple[Cell, ...], mask: Tensor) -> Tensor:
        """Return the mask [N, T] without the attention that cells knock out in this layer, see ``Context.mask``."""
        knockout = cells[0].knockout
        rows = [row for row, cell in enumerate(cells) if cell.restores(ATTENTION, self.index)]
        if knockout is None or not rows:
            return mask
        of_layer = knockout.of_layer(self.index)
        heads = range(1) if of_layer is None else range(self.layer.n_heads)  # one mask for all heads, or one for each
        hidden = torch.zeros(len(cells), len(heads), mask.shape[-1], dtype=torch.bool)  # from the column's token
        for row in rows:
            for head in heads if of_layer is None else of_layer:
                hidden[row, head, list(knockout.sources)] = True
        mask = mask.expand(len(cells), len(heads), -1, -1).clone()
        mask[:, :, 0].masked_fill_(sent(hidden, mask.device), float("-inf"))
        groups = 1 if of_layer is None else self.layer.n_key_heads
        return mask.unflatten(1, (groups, -1)).transpose(0, 1)  # heads that share a key are neighbours


@dataclass(frozen=True)
class _Writer:
    """Writes values of the donor and of the base at the column's token."""

    cells: tuple[Cell, ...]
    step: _Step
    n_tokens: int

    def given(self, point: Point) -> Tensor | None:
        restored, held = self._rows(point)
        for rows, run in ((restored, self.step.donor), (held, self.step.base)):
            if len(rows) == len(self.cells):
                value = self._value(run, point)
                return value.expand(len(self.step.base.states[0]), -1)
        return None

    def taps(self, point: Point) -> bool:
        return any(self._rows(point))

    def at(self, point: Point, value: Tensor) -> Tensor:
        restored, held = self._rows(point)
        if value.shape[2] < self.n_tokens or len(self.cells) in (len(restored), len(held)) and point not in UNITS:
            return value
        if restored and point in UNITS:
            self._write_units(point, value, restored)
        elif restored:
            value[_index(restored, value), :, 0] = self._value(self.step.donor, point)
        if held:
            value[_index(held, value), :, 0] = self._value(self.step.base, point)
        return value

    def _rows(self, point: Point) -> tuple[list[int], list[int]]:
        """Return the rows of the cells with the donor's value at a point, and those with the base's value."""
        index = self.step.index
        restored = [row for row, cell in enumerate(self.cells) if cell.restores(point, index)]
        held = [row for row, cell in enumerate(self.cells) if cell.holds(point, index)]
        return restored, held

    def _value(self, run: RecordedRun, point: Point) -> Tensor:
        """Return the recorded value of a point at the column's token, [S, width]."""
        return run.points[point][self.step.index][:, self.step.token]

    def _write_units(self, point: Point, value: Tensor, rows: list[int]) -> None:
        """Write the donor's value of one head or neuron into each row."""
        width = self.step.layer.head_width if point == "heads" else 1
        at = index_on(value.device, rows)
        units = index_on(value.device, [unit for row in rows if (unit := self.cells[row].unit) is not None])
        donor = self._value(self.step.donor, point).unflatten(-1, (-1, width))  # [S, units, width]
        # Indexed rows and units come first: [rows, S, width].
        value.unflatten(-1, (-1, width))[at, :, 0, units] = donor[:, units].transpose(0, 1)


def _index(rows: list[int], value: Tensor) -> slice | Tensor:
    """Return an index of some rows of a value; a slice if they are neighbours, which is faster."""
    start, stop = rows[0], rows[-1] + 1
    return slice(start, stop) if len(rows) == stop - start else index_on(value.device, rows)
