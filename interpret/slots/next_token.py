"""What a model says next after a prompt with a state in its slots: the logits of one token, without decoding a text.

Self-interpretation decodes a text from the same logits; the token-identity lens of ``probing`` reads only them.
"""

import torch
from torch import Tensor

from interpret.slots.decoding import Primed, Start, start_inserted
from interpret.slots.whole_passes import WholePrimed, next_logits_whole


@torch.no_grad()
def next_logits(primed: Primed | WholePrimed, layer: int, states: Tensor) -> Tensor:
    """Return the logits of the token after a prompt, for each state inserted into all of its slots.

    Args:
        primed: the prompt and the model, from ``prime``.
        layer: the layer whose input is replaced by the state in the slots.
        states: [R, D].

    Returns:
        [R, V], at least float32, on the device of the model's input.

    Raises:
        SpecError: if a state does not fit the model.
    """
    slots = primed.template.slots
    insertions = [{layer: (slots, state.expand(1, len(slots), -1))} for state in states]
    if isinstance(primed, WholePrimed):
        return next_logits_whole(primed, insertions)
    start = start_inserted(primed, insertions)
    assert isinstance(start, Start)
    return start.logits
