"""What jobs about prompts have in common: one unit per prompt, at tokens that a selector chooses."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from interpret.prompts.prompts import Prompt
from interpret.prompts.selectors import selector_words
from interpret.prompts.tokens import without_subject
from interpret.work.inputs import PromptList
from interpret.work.loop import Work


@dataclass(frozen=True)
class PromptJob(ABC):
    """Prompts to process, one unit per prompt; those without the selected subject are dropped."""

    found: PromptList
    """The prompts."""
    tokens: str | Sequence[int]
    """Selector of the tokens, or their positions."""

    @property
    @abstractmethod
    def work(self) -> Work:
        """The words for messages; a unit is dropped with the last of ``failures``."""

    @property
    def selector(self) -> str:
        """The selector of the tokens as text."""
        return selector_words(self.tokens)

    @property
    def others(self) -> Sequence[str]:
        """Names of files and folders besides the table: none."""
        return ()

    @property
    def lacking(self) -> dict[str, str]:
        """The prompts without the subject that is selected -> reason.

        Raises:
            InputError: if no prompt has it.
        """
        found = without_subject(self.found.prompts, self.selector)
        return {name: f"{self.work.failures[-1]}: {reason}" for name, reason in found.items()}

    @property
    def kept(self) -> list[Prompt]:
        """The other prompts."""
        lacking = self.lacking
        return [one for one in self.found.prompts if one.name not in lacking]

    @property
    def units(self) -> list[str]:
        """The names of the prompts, those that are dropped first."""
        return [*self.lacking, *(one.name for one in self.kept)]
