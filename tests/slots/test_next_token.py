"""The logits after a prompt with a state in its slots, compared with plain forward passes."""

from dataclasses import dataclass

import pytest
import torch

from interpret.errors import SpecError
from interpret.slots.decoding import prime
from interpret.slots.next_token import next_logits
from reference.kinds import FURTHER, FURTHER_WHOLE, KINDS, D, L, V
from reference.overlay import reference_forward
from reference.tiny import hooks_on, tiny_model


@dataclass(frozen=True)
class Slotted:
    """A prompt with slots."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]
    name: str = "slotted"


AT_THE_END = Slotted((5, 6, 7, 8, 9), (4,))
TWO_INSIDE = Slotted((5, 6, 7, 8, 9), (1, 3))


@pytest.mark.parametrize("prompt", [AT_THE_END, TWO_INSIDE], ids=["at the end", "two inside"])
@pytest.mark.parametrize("kind", [*KINDS, *FURTHER, *FURTHER_WHOLE])
def test_next_logits_are_those_of_a_whole_pass_with_the_state_in_every_slot(kind, prompt):
    model, states = tiny_model(kind), torch.randn(3, D)
    primed = prime(model, prompt, 1)
    for layer in (0, L - 1):
        found = next_logits(primed, layer, states)
        assert found.shape == (3, V)
        for state, logits in zip(states, found, strict=True):
            info = {layer: (list(prompt.slots), state.expand(1, len(prompt.slots), -1))}
            with torch.no_grad():
                expected = reference_forward(model, list(prompt.ids), info, len(prompt.ids)).logits
            torch.testing.assert_close(logits, expected[-1], rtol=1e-4, atol=1e-5)
    assert hooks_on(model) == 0


def test_a_state_of_another_width_is_refused(llama):
    with pytest.raises(SpecError, match="width"):
        next_logits(prime(llama, AT_THE_END, 1), 0, torch.randn(1, D + 1))
