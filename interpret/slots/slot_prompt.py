"""What decoding needs to know of a prompt with slots."""

from typing import Protocol


class SlotPrompt(Protocol):
    """A text with slots, as token ids, such as an interpretation prompt."""

    @property
    def name(self) -> str:
        """Name of the prompt in messages."""

    @property
    def ids(self) -> tuple[int, ...]:
        """[T] token ids."""

    @property
    def slots(self) -> tuple[int, ...]:
        """Positions of the slots in ``ids``, ascending."""
