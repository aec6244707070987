"""Draw docs/pictures/architecture.svg: the packages in the order of the data, and which imports which.

A row per package, from what knows nothing of models down to the commands; a dot where a module of it imports a module
of the package above. All dots lie left of the diagonal, so no package imports one that comes after it. The picture is
made from the import statements of the project, and keeps them in its metadata: tests/test_architecture.py fails when
they have changed since. Run `python docs/draw_architecture.py` then.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests"))
from reference.house import IMPORTS, LEVELS, MODULES, room_imports, room_of  # noqa: E402

PICTURE = TOP / "docs" / "pictures" / "architecture.svg"
LEFT_OUT = {"__init__", "__main__", "lazy"}
"""The doors: they have the names of all others, and no code of their own."""
BANDS, DOT, DIAGONAL = ("#ffffff", "#eef2f7"), "#1f4e79", "#cfd7e2"
CELL, LABEL = 0.27, 1.75
"""In inches: the side of a cell, and the room for names and numbers of modules at the left."""


def rooms_in_order() -> list[tuple[int, str]]:
    """Return each package with its level, in the order of the levels."""
    return [(height, room) for height, level in enumerate(LEVELS) for room in sorted(level - LEFT_OUT)]


def count_imports(room: str, other: str) -> int:
    """Return how many modules of a package import one of another."""
    own = [module for module in MODULES if room_of(module) == room]
    return sum(any(room_of(imported) == other for imported in IMPORTS[module]) for module in own)


def draw_bands(panel: Axes, rooms: list[tuple[int, str]]) -> None:
    """Shade packages of one level alike, and write their names."""
    for row, (level, room) in enumerate(rooms):
        panel.add_patch(Rectangle((-LABEL / CELL, row), len(rooms) + LABEL / CELL, 1, color=BANDS[level % 2], zorder=0))
        n_modules = sum(room_of(module) == room for module in MODULES)
        panel.text(-0.35, row + 0.5, room, ha="right", va="center", fontsize=9, fontweight="bold")
        panel.text(
            -LABEL / CELL + 0.3, row + 0.5, str(n_modules), ha="left", va="center", fontsize=7.5, color="#555555"
        )
        panel.text(row + 0.5, -0.3, room, ha="left", va="bottom", fontsize=8, rotation=55, rotation_mode="anchor")
        panel.add_patch(Rectangle((row, row), 1, 1, color=DIAGONAL, zorder=1))


def draw() -> Figure:
    """Draw all packages and their imports."""
    rooms = rooms_in_order()
    side = CELL * len(rooms)
    figure = Figure(figsize=(side + LABEL + 0.7, side + 1.2))
    width, height = figure.get_size_inches()
    panel = figure.add_axes((0, 0, (side + LABEL) / width, side / height))
    panel.set(xlim=(-LABEL / CELL, len(rooms)), ylim=(len(rooms), 0))
    panel.set_axis_off()
    draw_bands(panel, rooms)
    for row, (_, room) in enumerate(rooms):
        for column, (_, other) in enumerate(rooms):
            if count := room != other and count_imports(room, other):
                panel.scatter(column + 0.5, row + 0.5, s=14 + 7 * min(count, 10), color=DOT, zorder=3)
    return figure


def description() -> str:
    """Return what the picture shows, as JSON."""
    return json.dumps({room: sorted(others) for room, others in sorted(room_imports().items())})


if __name__ == "__main__":
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "architecture"}):
        draw().savefig(PICTURE, metadata={"Date": None, "Description": description()})
