"""What every result has: ``to_frame``, ``show``, ``save``, ``figure``, ``to_html``, and its display in a notebook.

A result says what it shows by one method, ``view``; the analyses define theirs in their own ``show.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from interpret.display.page import framed, light, page_of
from interpret.display.view import View
from interpret.errors import InputError
from interpret.records import csv_header, to_csv
from interpret.storage.disk import replacing
from interpret.storage.frames import record_frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

R = TypeVar("R")


class Shown(ABC):
    """A result that shows itself in a terminal, a notebook, a page and a figure."""

    @abstractmethod
    def view(self) -> View:
        """Return what is shown: the title, how the result was made, and the heat maps of its inputs."""

    @abstractmethod
    def to_frame(self) -> "pandas.DataFrame":
        """Return the numbers as a table in long format."""

    def to_html(self) -> str:
        """Return the result as one self-contained HTML page, which loads nothing from elsewhere."""
        return "".join(page_of(self.view()))

    def show(self, *, html: str | Path | None = None, overwrite: bool = False) -> Path | None:
        """Display the result as tables in a terminal or as a page in a notebook, or write the page to a file.

        Args:
            html: the file to write; nothing is displayed then. None: display.
            overwrite: replace an existing file.

        Returns:
            The path of the written file; None if none is written.

        Raises:
            InputError: if the file exists and ``overwrite`` is false.
            RunError: if the file cannot be written.
        """
        if html is not None:
            return write_new(html, map(str.encode, self._pieces()), overwrite=overwrite)
        from rich.console import Console

        console = Console()
        if console.is_jupyter:
            from IPython.display import HTML, display  # installed where notebooks are

            display(HTML(framed("".join(self._pieces()))))
        else:
            from interpret.display.terminal import Tables

            console.print(Tables(self.view()))
        return None

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the numbers to a CSV file, the rows of ``to_frame``.

        Args:
            path: the file to write; its folder must exist.
            overwrite: replace an existing file.

        Returns:
            The path of the written file.

        Raises:
            InputError: if the file exists and ``overwrite`` is false.
            RunError: if the file cannot be written.
        """
        return write_new(path, [self._csv()], overwrite=overwrite)

    def figure(self, input: int = 0) -> "Figure":
        """Return a matplotlib figure of one input's heat maps, for papers and slides.

        Args:
            input: number of the input, from 0.

        Raises:
            InputError: if there is no such input.
        """
        from interpret.display.figure import panel_figure

        view = self.view()
        check_input(input, view.n_panels)
        panel = next(panel for number, panel in enumerate(view.panels()) if number == input)
        return panel_figure(view, panel)

    def _repr_html_(self) -> str:
        """Return what a notebook displays: the page of as many inputs as are quickly displayed, in a closed frame."""
        return framed("".join(page_of(light(self.view()))))

    def _pieces(self) -> Iterable[str]:
        return page_of(self.view())

    def _csv(self) -> bytes:
        text: str = self.to_frame().to_csv(index=False, lineterminator="\n")
        return text.encode()


class Rows(list[R], Shown):
    """Rows of a table, records of one type, that show themselves; a list in every other respect.

    Each analysis has a subclass, such as ``interpret.locating.Locations``. ``Locations(run.records())`` shows a run.
    """

    record_type: ClassVar[type]
    """The type of the records."""

    def to_frame(self) -> "pandas.DataFrame":
        """Return one row per record, with the columns of the CSV table of a run."""
        return record_frame(self.record_type, self)

    def _csv(self) -> bytes:
        """Return the table as in a run folder, for ``interpret.read_table``."""
        return csv_header(self.record_type) + to_csv(self)

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self else repr(self)

    def __repr__(self) -> str:
        """Return the number of rows; ``show`` displays them."""
        return f"{type(self).__name__}({len(self)} row{'s'[: len(self) != 1]})"


def check_input(input: int, count: int) -> None:
    """Check that a result has an input of this number.

    Raises:
        InputError: if it has not.
    """
    if not 0 <= input < count:
        raise InputError(f"input {input} does not exist; this result has {count}, counted from 0")


def write_new(path: str | Path, parts: Iterable[bytes], *, overwrite: bool) -> Path:
    """Write a file, completely or not at all.

    Raises:
        InputError: if it exists and ``overwrite`` is false.
        RunError: if it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists; give overwrite=True to replace it, or choose another name")
    with replacing(path) as file:
        for part in parts:
            file.write(part)
    return path


def grouped(rows: Iterable[R], key: Callable[[R], Hashable]) -> list[list[R]]:
    """Group rows by a key, in order of first appearance."""
    found: dict[Hashable, list[R]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())
