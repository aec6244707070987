"""Output of the commands: consoles for stdout and stderr, lines and tables; also the check of a choice."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from interpret.errors import InputError, RunError, unknown
from interpret.storage.run_folder import TABLE
from interpret.work.progress import err as err
from interpret.work.progress import say as say

if TYPE_CHECKING:
    from interpret.facts.grids import BucketMean

# With emoji codes enabled, rich would replace ":-1:" in a layer selector by a picture of a thumb.
out = Console(emoji=False)

NOT_DONE, NOT_ALL, INTERRUPTED = 2, 3, 130
"""Exit codes: invalid input; finished, but some units could not be processed; interrupted."""


MOST_SHOWN = 10
"""Maximum number of rows, steps or failed units to print."""


Name = TypeVar("Name", bound=str)


def tell(line: str) -> None:
    """Print a line of results on stdout, without interpreting markup."""
    out.print(escape(line), highlight=False, soft_wrap=True)


def tell_more(**left: int) -> None:
    """Print how much of a table is not shown, as in "and 39 more rows in table.csv"; nothing if all is.

    Args:
        left: noun in the plural -> how many are not shown.
    """
    parts = [counted(count, noun) for noun, count in left.items() if count > 0]
    if parts:
        tell(f"and {' and '.join(parts)} in {TABLE}")


def counted(count: int, nouns: str) -> str:
    """Return a count in words.

    >>> counted(2, "steps"), counted(1, "steps")
    ('2 more steps', '1 more step')
    """
    return f"{count:,} more {nouns.removesuffix('s') if count == 1 else nouns}"


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Print nothing on both consoles inside the ``with`` block, if ``quiet`` is true."""
    before = out.quiet, err.quiet
    if quiet:
        out.quiet = err.quiet = True
    try:
        yield
    finally:
        out.quiet, err.quiet = before


def show_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table."""
    table = Table(Column(header[0], overflow="fold"), *header[1:])
    for row in rows:
        table.add_row(*map(escape, row))
    tell(title)
    out.print(table)


def peak_cells(peak: "BucketMean") -> tuple[str, str, str, str, str]:
    """Return the cells of an average: kind of token, layer, mean, interval (empty for a single fact), and facts."""
    interval = f"{signed(peak.low)} to {signed(peak.high)}" if peak.n > 1 else ""
    return peak.bucket, str(peak.layer_idx), signed(peak.mean), interval, str(peak.n)


def signed(value: float) -> str:
    """Return an effect with its sign and three decimals; of a smaller one its first digit, in as few characters.

    >>> signed(0.25), signed(-0.00002), signed(0.0)
    ('+0.250', '-2e-05', '+0.000')
    """
    return f"{value:+.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:+.0e}"


def choice(kind: str, name: str, allowed: Iterable[Name]) -> Name:
    """Return the given name if it is allowed.

    Args:
        kind: what the name denotes, for the message.
        name: the given name.
        allowed: the allowed names.

    Raises:
        InputError: if the name is not allowed.
    """
    names = list(allowed)
    for one in names:
        if one == name:
            return one
    raise InputError(unknown(kind, name, names))


def make_folder(folder: Path) -> None:
    """Create a folder for results, if it does not exist.

    Raises:
        RunError: if it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be created: {error.strerror}") from error
