"""Value zeroing: how much the output of a layer changes if one token's value vectors are zeroed in its attention.

Mohebbi et al. 2023 (arXiv:2301.12971), section 3. Scores tell which tokens a layer mixes into the last one, not their
effect on the output: they have no sign, and do not depend on the attributed function. Shapes: T tokens of a step's
text, L layers, D hidden width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from interpret.attribution.methods.attention import HeadAggregate, Selection, aggregated, indices
from interpret.attribution.steps.derivatives import sides
from interpret.attribution.steps.fitting import at_once, in_parts
from interpret.attribution.steps.step import Step
from interpret.device import sent
from interpret.engine.layers import Context, Layer, Past, Untapped, run_layer
from interpret.engine.masks import mask_for
from interpret.engine.recording import RecordedRun, record_run
from interpret.engine.trunk import Trunk, check_trunk, trunk_of


@torch.no_grad()
def value_zeroing(
    steps: Sequence[Step], *, layers: Selection = None, aggregate_layers: HeadAggregate = "mean"
) -> list[Tensor]:
    """Return by how much each token's values change the output of layers at the last token of the text, [T].

    In one layer at a time, the value vectors of one token are set to zero in all heads. The score of the token is the
    cosine distance between the output of the layer at the last token and its output without this change; the scores of
    a layer are divided by their sum. All else is the model's own pass, so what reaches the layer does not change.

    Args:
        steps: steps of one text.
        layers: a layer number, a span ``(first, one past the last)``, a list, a selector such as ``"0:20:5"`` or
            ``"all"``, or None for all layers.
        aggregate_layers: ``mean``, ``max`` or ``min`` over layers, for each token; ``single`` requires a single layer.

    Raises:
        InputError: for a layer that does not exist, an unknown aggregate, or ``single`` with several.
        UnsupportedModelError: if the model cannot be run layer by layer.
    """
    scores: list[Tensor] = []
    for some in sides(steps):
        last = some[-1]
        trunk = trunk_of(last.model, len(last.ids))
        run = at_once(last, partial(_recorded, trunk, last))
        chosen = indices("layers", layers, len(trunk.layers))
        for step in some:
            of_layers = torch.stack([_shares(step, trunk.layers[at], run, at).cpu() for at in chosen])  # [L, T]
            scores.append(aggregated("aggregate_layers", aggregate_layers, of_layers, dim=0))
    return scores


def _recorded(trunk: Trunk, step: Step) -> RecordedRun:
    run = record_run(trunk.layers, trunk.enter(step.embeddings), ())
    check_trunk(step.model, trunk, step.embeddings, run.states[-1])
    return run


def _shares(step: Step, layer: Layer, run: RecordedRun, at: int) -> Tensor:
    """Return the scores of one layer, [T], which sum to 1 unless all are 0."""
    distances = in_parts(step, torch.arange(len(step.ids)), partial(_distances, layer, run, at, len(step.ids) - 1))
    return distances / distances.sum().clamp_min(torch.finfo(distances.dtype).tiny)


def _distances(layer: Layer, run: RecordedRun, at: int, end: int, tokens: Tensor) -> Tensor:
    """Return how far the layer's output at token ``end`` moves if the values of each of some tokens are zeroed, [B]."""
    # Token ``end`` reads its own keys and values from the past, too, where they can be zeroed.
    x, past, B = run.states[at][:, end : end + 1].to(layer.device), run.past[at], len(tokens)
    columns = torch.arange(end + 1)
    zeroed = sent(columns == tokens[:, None], layer.device)  # [B, T]
    keys = past.keys[:, :, : end + 1].expand(B, -1, -1, -1)
    values = past.values[:, :, : end + 1].masked_fill(zeroed[:, None, :, None], 0)
    mask = mask_for(1, end, layer.window, columns)
    mask = torch.cat([mask, torch.full((1, 1), float("-inf"))], dim=1)  # [1, T + 1]
    context = Context(Past(keys, values), sent(mask, layer.device), sent(columns[-1:], layer.device))
    changed, _ = run_layer(layer, x.expand(B, -1, -1)[None], context, Untapped())  # [1, B, 1, D]
    output = run.states[at + 1][:, end].to(layer.device)
    distances = 1 - torch.cosine_similarity(changed[0, :, 0].float(), output.float())
    return distances.clamp_min(0)  # rounding errors
