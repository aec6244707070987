"""Many patched runs of one base run, sharing what they have in common, exactly.

``cells`` says what can be restored and held, ``metrics`` what is read, ``columns`` runs the cells of one token,
``engine`` puts it together; ``whole`` does without what is shared. ``attribution`` estimates the same cells from the
derivatives ``backward`` finds in the two runs of ``two_runs``.
"""

from interpret.sweep.cells import Cell, CellSite, Pin, grid, window_around
from interpret.sweep.exact import SweepResult, sweep
from interpret.sweep.first_order import FirstOrder, first_order
from interpret.sweep.metrics import Metric

__all__ = [
    "Cell",
    "CellSite",
    "FirstOrder",
    "Metric",
    "Pin",
    "SweepResult",
    "first_order",
    "grid",
    "sweep",
    "window_around",
]
