"""Interpret states: generate a text for each state, and score it with this state and under the controls.

The controls are nothing inserted, a wrong state, and the prompt's own text in place of the state.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from math import isfinite, log
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor

from interpret.device import in_batches, sent
from interpret.errors import InputError
from interpret.finite import NOTHING_FINITE
from interpret.selfie.decoding import Primed, score, score_after, score_plain, start_inserted, start_plain, write
from interpret.selfie.settings import SAME, Settings
from interpret.selfie.templates import InterpretationPrompt
from interpret.selfie.whole_passes import WholePrimed
from interpret.selfie.written import Written
from interpret.storage.parts import StoredParts
from interpret.surgery.words import MODE, STRENGTH


@dataclass(frozen=True)
class State:
    """A state to interpret, and what to compare it with."""

    prompt: str
    """Name of the prompt it comes from."""
    layer: int
    token: int
    vector: Tensor
    """[D], the state."""
    wrong: Tensor | None = None
    """[D], the state of another token at the same layer; None for no comparison."""
    wrong_token: int | None = None
    """Position of that token."""
    text: str | None = None
    """The prompt's own text up to and including the token; None for no comparison."""
    with_text: Sequence[int] | None = None
    """[T] ids of the interpretation prompt with this text in place of its slots."""

    @property
    def place(self) -> tuple[str, int, int | None]:
        """The key that identifies the state."""
        return self.prompt, self.layer, self.token

    @property
    def wrong_place(self) -> tuple[str, int, int | None]:
        """The key that identifies the wrong state."""
        return self.prompt, self.layer, self.wrong_token


@dataclass(frozen=True)
class Reading:
    """The text generated for one state, and its probabilities under the controls."""

    written: Written
    p_without: list[float]
    """[G], probability of each token with nothing inserted."""
    p_wrong: list[float]
    """[G], probability of each token with the wrong state inserted; empty if there is none."""
    wrong_token: int | None
    """Position of the token whose state was the wrong one; None if there was none."""
    p_text: list[float]
    """[G], probability of each token with the prompt's own text in place of the slots; empty if there is none."""


Unread = Literal["too large", "not finite"]
"""Why a state has no reading: it does not fit in memory, or it or a probability of its text is NaN or infinite."""


@dataclass(frozen=True)
class KeptReadings:
    """The readings of one interpretation prompt that are on disk."""

    parts: StoredParts
    template: int
    """Index of the interpretation prompt."""

    def get(self, state: State) -> Reading | Unread | None:
        """Return the reading of a state, or that it did not fit in memory; None if neither is on disk."""
        found = self.parts.get(state.prompt, self._part(state))
        if found == "too large":
            return "too large"
        return None if found is None else Reading(Written(*found[0]), *found[1:])

    def keep_too_large(self, state: State) -> Unread:
        """Store that a state does not fit in memory, and return it."""
        self.parts.keep({(state.prompt, self._part(state)): "too large"})
        return "too large"

    def keep(self, states: Sequence[State], readings: Sequence[Reading]) -> None:
        """Store the readings of a batch."""
        both = zip(states, readings, strict=True)
        self.parts.keep({(state.prompt, self._part(state)): astuple(reading) for state, reading in both})

    def _part(self, state: State) -> str:
        return f"{self.template} {state.layer} {state.token}"


def read(
    primed: Primed | WholePrimed,
    states: Sequence[State],
    settings: Settings,
    size: int,
    say: Callable[[str], None],
    kept: KeptReadings,
    *,
    drop_too_large: bool = False,
) -> Iterator[Reading | Unread]:
    """Interpret states in batches, and yield the readings in order.

    Readings that are on disk are not computed again. They are those of whole batches, so the other batches are the same
    as in an uninterrupted run.

    Raises:
        ModelError: if a state does not fit in memory alone, and is not to be dropped.
    """

    def work(batch: Sequence[State]) -> list[Reading]:
        found = _read_batch(primed, batch, settings)
        kept.keep(batch, found)
        return found

    stored = [kept.get(state) for state in states]
    sound = are_finite([state.vector for state in states])
    wanted = [state for state, own, finite in zip(states, stored, sound, strict=True) if finite and own is None]
    readings = in_batches(wanted, size, work, say, kept.keep_too_large if drop_too_large else None)
    for own, finite in zip(stored, sound, strict=True):
        reading: Reading | Unread = own if own is not None else next(readings) if finite else "not finite"
        yield reading if isinstance(reading, str) or _is_finite(reading.written) else "not finite"


def are_finite(vectors: Sequence[Tensor]) -> list[bool]:
    """Return whether each vector, [D], is finite; together, because reading each answer waits for the device."""
    if not vectors:
        return []
    beside = [sent(vector, vectors[0].device) for vector in vectors]
    finite: list[bool] = torch.stack(beside).isfinite().all(dim=1).tolist()
    return finite


def _is_finite(written: Written) -> bool:
    return all(map(isfinite, written.probabilities))


def _read_batch(primed: Primed | WholePrimed, batch: Sequence[State], settings: Settings) -> list[Reading]:
    """Generate texts for N states in one batch, and score them under the controls."""
    vectors = {state.place: (state.layer, state.vector) for state in batch}
    vectors |= {  # a wrong state that is not itself in the batch gets its own row
        state.wrong_place: (state.layer, state.wrong)
        for state in batch
        if state.wrong is not None and state.wrong_place not in vectors
    }
    rows = {place: row for row, place in enumerate(vectors)}
    start = start_inserted(primed, [insertion(primed.template, *one, settings) for one in vectors.values()])
    written = write(start, [rows[state.place] for state in batch], settings.new_tokens)
    texts = [one.ids for one in written]
    p_without = score_plain(primed, texts)
    p_wrong: list[list[float]] = [[] for _ in batch]
    compared = [row for row, state in enumerate(batch) if state.wrong is not None]
    elsewhere = [rows[batch[row].wrong_place] for row in compared]
    for row, p in zip(compared, score(start, elsewhere, [texts[row] for row in compared]), strict=True):
        p_wrong[row] = p
    p_text = _scored_with_text(primed, batch, texts)
    wrong_tokens = [state.wrong_token for state in batch]
    return [Reading(*parts) for parts in zip(written, p_without, p_wrong, wrong_tokens, p_text, strict=True)]


def _scored_with_text(
    primed: Primed | WholePrimed, batch: Sequence[State], texts: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Score the text of each state after the interpretation prompt with the text of the state's prompt in its slots."""
    found: list[list[float]] = [[] for _ in batch]
    by_prompt: dict[str, dict[int, Sequence[int]]] = {}  # prompts have only the interpretation prompt in common
    for row, state in enumerate(batch):
        if state.with_text is not None:
            by_prompt.setdefault(state.prompt, {})[row] = state.with_text
    for prompts in by_prompt.values():
        scored = score_after(primed, list(prompts.values()), [texts[row] for row in prompts])
        for row, p in zip(prompts, scored, strict=True):
            found[row] = p
    return found


def read_nothing(primed: Primed | WholePrimed, settings: Settings) -> Reading:
    """Generate the control text: after the template with nothing inserted.

    Raises:
        InputError: if the model gives no finite probabilities.
    """
    (written,) = write(start_plain(primed), [0], settings.new_tokens)
    if not _is_finite(written):
        raise InputError(f"probabilities after the interpretation prompt {primed.template.name!r} {NOTHING_FINITE}")
    return Reading(written, written.probabilities, [], None, [])


def insertion(template: InterpretationPrompt, layer: int, state: Tensor, settings: Settings) -> dict[Any, Any]:
    """Return the ``insert_info`` entry that inserts one state, [D], of a layer into every slot."""
    where = layer if settings.insertion_layer == SAME else settings.insertion_layer
    vectors = state.expand(1, len(template.slots), -1)  # [1, P, D]
    return {where: (template.slots, vectors), MODE: settings.mode, STRENGTH: settings.strength}


def log_gain(own: Sequence[float], control: Sequence[float]) -> float | None:
    """Return how much more likely a text is in its own run than in a control, in nats per token.

    This is the mean of ln(own / control) over its G tokens; None if G is 0. Probabilities that underflow to 0 are
    replaced by the smallest normal float32 number.
    """
    tiny = torch.finfo(torch.float32).tiny
    gains = [log(max(p, tiny)) - log(max(q, tiny)) for p, q in zip(own, control, strict=True)]
    return mean(gains) if gains else None
