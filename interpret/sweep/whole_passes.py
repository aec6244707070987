"""Sweeps by whole forward passes, for families that are described without their parts.

The results equal those of ``exact``, but no computation is shared: each cell and sample is one batch row, in which
hooks write what is restored and held, or change the attention mask. Cells without an effect are not run. Letters: C
cells, S samples, T tokens, L layers, K positions that are read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interpret.activations._record import record
from interpret.anatomy import (
    Anatomy,
    anatomy_of,
    has_neurons,
    layer_input,
    neuron_numbers,
    residual_factor,
    text_config,
    with_layer_input,
)
from interpret.anatomy.changes import Changes
from interpret.anatomy.neurons import hook_neurons
from interpret.device import is_out_of_memory
from interpret.errors import UnsupportedModelError
from interpret.sweep.base_and_donor import first_difference, has_effect
from interpret.sweep.cells import ATTENTION, Cell
from interpret.sweep.metrics import Metric, read

TOKENS = 4096
"""Maximum number of tokens in a batch; a batch has at least one cell."""
MASKED = ("eager", "sdpa")
"""Implementations of attention that take a mask of any form."""
Place = tuple[int, str]
"""A layer and a site; (-1, "resid_post") is the input of layer 0."""


def whole_passes(
    model: PreTrainedModel, base: Tensor, donor: Tensor, cells: Sequence[Cell], metrics: Sequence[Metric], n_read: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Run every cell that can have an effect as a whole forward pass.

    Args:
        model: a causal LM of a supported family.
        base: embeddings of the runs to patch, [S, T, width].
        donor: embeddings of the runs whose values are restored, [S, T, width] or [1, T, width].
        cells: the cells, already checked.
        metrics: what is read.
        n_read: number K of positions that are read.

    Returns:
        Each position's contribution to the metrics, float64: of the base runs, [metrics, S, K], of the donor runs,
        [metrics, S or 1, K], and of the cells, [metrics, C, S, K]; and the number of cells that were run. The others
        have the values of the base runs.

    Raises:
        UnsupportedModelError: if a cell is a head, which can be found only with the parts of a layer, or a neuron that
            cannot be read; or if it knocks out attention, in single heads or of a kind without a mask, or all that a
            token attends to.
    """
    _check_places(anatomy_of(model), cells)
    layers = range(len(anatomy_of(model).layers))
    restoring = [cell for cell in cells if cell.knockout is None]
    wanted: set[Place] = {(layer, cell.site) for cell in restoring for layer in range(cell.start, cell.stop)}
    pinned: set[Place] = {(layer, site) for cell in cells for layer, site in _held(cell, layers)}
    held, of_base = _recorded(model, base, pinned, metrics, n_read)
    given, of_donor = _recorded(model, donor, wanted, metrics, n_read)
    unlike = first_difference(base, donor)
    run = [index for index, cell in enumerate(cells) if has_effect(cell, unlike)]
    values = of_base[:, None].repeat(1, len(cells), 1, 1)
    size = max(1, TOKENS // (len(base) * base.shape[1]))
    first = 0
    while first < len(run):
        some = run[first : first + size]
        try:
            values[:, some] = _patched(model, base, [cells[index] for index in some], given, held, metrics, n_read)
            first += size
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size == 1:
                raise
            size = (size + 1) // 2
    return of_base, of_donor, values, len(run)


def _check_places(anatomy: Anatomy, cells: Sequence[Cell]) -> None:
    """Check that the layers have what cells restore and hold.

    Raises:
        UnsupportedModelError: if they do not; the message names the first such cell.
    """
    layers = range(len(anatomy.layers))
    for index, cell in enumerate(cells):
        if cell.unit is not None and not (cell.site == "neurons" and has_neurons(anatomy, cell.start)):
            raise UnsupportedModelError(
                f"cells[{index}]: the family {anatomy.family.name!r} is described without its parts, so a "
                f"single {cell.one_unit} cannot be restored; docs/architecture.md shows how to describe the parts"
            )
        if cell.knockout is not None:
            if problem := _not_maskable(anatomy, cell):
                raise UnsupportedModelError(f"cells[{index}]: {problem}")
            continue
        restored = [(layer, cell.site) for layer in range(cell.start, cell.stop) if cell.site != "resid_post"]
        try:
            for layer, site in (*restored, *_held(cell, layers)):
                site = _own_site(anatomy, layer, site)
                _ = neuron_numbers(anatomy, layer) if site == "neurons" else anatomy.module(layer, site)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"cells[{index}]: {error}") from None


def _held(cell: Cell, layers: Sequence[int]) -> list[Place]:
    """Return the places at which a cell holds values of the base run."""
    return [(layer, site) for site in ("attn_out", "mlp_out") for layer in layers if cell.holds(site, layer)]


def _recorded(
    model: PreTrainedModel, run: Tensor, places: set[Place], metrics: Sequence[Metric], n_read: int
) -> tuple[dict[Place, Tensor], Tensor]:
    """Return the values at some places in an unpatched pass, [S, T, D], and its contributions to the metrics."""
    anatomy = anatomy_of(model)
    names = {place: _name(anatomy, *place) for place in places}
    with record(model, sorted(set(names.values()))) as seen:
        logits = _logits(model, run.clone(), n_read)
    # Hooks write module outputs, which the model multiplies by this factor before it adds them.
    factor = residual_factor(anatomy)
    unscaled = ("resid_post", "neurons")
    values = {place: seen[name] if place[1] in unscaled else seen[name] / factor for place, name in names.items()}
    return values, read(metrics, logits.float())


def _logits(model: PreTrainedModel, embeddings: Tensor, n_read: int) -> Tensor:
    """Return the logits at the last positions of a pass over embeddings, [R, T, width] -> [R, K, V]."""
    given: dict[str, Any] = {}
    if text_config(model) is not model.config:  # without ids, Qwen3-VL of transformers 4.57 counts tokens by the mask
        given["attention_mask"] = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
    output: Any = model(inputs_embeds=embeddings, use_cache=False, **given)
    logits: Tensor = output.logits[:, -n_read:]
    return logits


def _name(anatomy: Anatomy, layer: int, site: str) -> str:
    return "resid_pre.0" if layer < 0 else f"{_own_site(anatomy, layer, site)}.{layer}"


def _own_site(anatomy: Anatomy, layer: int, site: str) -> str:
    """Return the site of a layer that a cell means: ``attn_out`` for ``mixer_out``, if the layer has attention."""
    return "attn_out" if site == "mixer_out" and anatomy.has(layer, "attn_out") else site


def _patched(
    model: PreTrainedModel,
    base: Tensor,
    cells: Sequence[Cell],
    given: Mapping[Place, Tensor],
    held: Mapping[Place, Tensor],
    metrics: Sequence[Metric],
    n_read: int,
) -> Tensor:
    """Return the contributions of C cells to the metrics, [metrics, C, S, K]."""
    anatomy, n_samples = anatomy_of(model), len(base)
    with Changes() as change, change:
        for place in [*given, *held.keys() - given.keys()]:
            writes = [
                (row, cell, values[place])
                for row, cell in enumerate(cells)
                for values, applies in ((given, cell.restores), (held, cell.holds))
                if applies(place[1], place[0])
            ]
            if writes:
                _hook(change, anatomy, place, _writer(writes, n_samples))
        for layer, block in enumerate(anatomy.layers):
            rows = [(row, cell) for row, cell in enumerate(cells) if cell.restores(ATTENTION, layer)]
            if rows:
                change.before(block.get_submodule(anatomy.family.attention), _masker(rows, len(cells), base))
        logits = _logits(model, base.repeat(len(cells), 1, 1), n_read)
    return read(metrics, logits.float()).unflatten(1, (len(cells), n_samples))


def _writer(writes: Sequence[tuple[int, Cell, Tensor]], n_samples: int) -> Callable[[Tensor], Tensor]:
    """Return a function that writes, for each (row, cell, values [S, T, width]), those at the cell's token and unit."""

    def write(value: Tensor) -> Tensor:
        rows = value.clone().view(-1, n_samples, writes[0][2].shape[1], value.shape[-1])  # [C, S, T, D]
        for row, cell, values in writes:
            unit = slice(None) if cell.unit is None else cell.unit
            # In OPT, the MLP's values are [S * T, D].
            rows[row, :, cell.token, unit] = values.view(-1, *rows.shape[2:])[:, cell.token, unit].to(rows.device)
        return rows.view(value.shape)

    return write


def _hook(change: Changes, anatomy: Anatomy, place: Place, write: Callable[[Tensor], Tensor]) -> None:
    """Register a hook that applies ``write`` to the values at a place."""
    layer, site = place

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return with_layer_input(args, kwargs, write(layer_input(args, kwargs)))

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (write(output[0]), *output[1:]) if isinstance(output, tuple) else write(output)

    if layer < 0:
        return change.before(anatomy.layers[0], on_input)
    if site == "neurons":
        return hook_neurons(change, anatomy, layer, write)
    own = _own_site(anatomy, layer, site)
    module = anatomy.layers[layer] if site == "resid_post" else anatomy.module(layer, own)
    return change.after(module, on_output)


def _not_maskable(anatomy: Anatomy, cell: Cell) -> str:
    """Return why attention cannot be knocked out by a mask; "" if it can."""
    assert cell.knockout is not None
    for layer in range(cell.start, cell.stop):
        if not anatomy.has(layer, "attn_out"):
            return f"layer {layer} of this {anatomy.family.name!r} model has no attention that could be knocked out"
    family = f"the family {anatomy.family.name!r} is described without its parts"
    if cell.knockout.heads is not None:
        return f"{family}, so attention cannot be knocked out in single heads; leave out the heads"
    if len(set(cell.knockout.sources)) > cell.token:
        return (
            f"{family}, so a token cannot be left with nothing to attend to; leave out one of the tokens 0 to "
            f"{cell.token}"
        )
    implementation = getattr(anatomy.trunk.config, "_attn_implementation", None) or "eager"
    if implementation not in MASKED:
        return f"attention {implementation!r} takes no mask of single tokens; open the model with 'eager' or 'sdpa'"
    return ""


def _masker(rows: Sequence[tuple[int, Cell]], n_cells: int, base: Tensor) -> Callable[..., Any]:
    """Return a hook before an attention module that knocks out attention in its mask, for (cell, its knockout).

    What a mask holds where a token is not attended to differs: False, True, -inf or the lowest number. It is read off
    the first token, which never attends to the last one.
    """
    n_samples, n_tokens = base.shape[:2]

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = kwargs.get("attention_mask")
        if "attention_mask" not in kwargs or (mask is not None and mask.dim() != 4):
            raise UnsupportedModelError(
                f"a {type(module).__name__} takes no mask of single tokens, so attention cannot be knocked out"
            )
        if mask is None:
            lowest = torch.full((n_tokens, n_tokens), torch.finfo(base.dtype).min, dtype=base.dtype, device=base.device)
            mask = lowest.triu(1)[None, None]
        mask = mask.expand(n_cells * n_samples, *mask.shape[1:]).clone()
        of_cells = mask.unflatten(0, (n_cells, n_samples))  # [C, S, H or 1, T, T]
        for row, cell in rows:
            assert cell.knockout is not None
            of_cells[row, :, :, cell.token, list(cell.knockout.sources)] = of_cells[row, :, :, 0, -1:]
        return args, {**kwargs, "attention_mask": mask}

    return on_input
