"""A result as it is shown: a title, how it was made, and the heat maps of its inputs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from interpret.display.heatmaps import Panel


@dataclass(frozen=True)
class View:
    """What the terminal, the page and the figure of a result show."""

    title: str
    unit: str
    """What the numbers are, such as ``P(Paris) - P(London)``."""
    panels: Callable[[], Iterator[Panel]]
    """Makes the panels one at a time, so that a result that is read from disk does not have to fit in memory."""
    n_panels: int
    facts: Mapping[str, str] = field(default_factory=dict)
    """How it was made: names and readable values."""
    warning: str = ""
    """The count of numbers that are not finite; "" if all are finite."""
