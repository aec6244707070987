"""Records: one frozen dataclass instance is one row of a results table.

``table`` is the whole CSV contract, both ways; the others hold the records, by analysis.
"""

from interpret.records.attributions import LocationAverage, LocationCell, TokenScore
from interpret.records.interpretations import Interpretation, Preservation
from interpret.records.probes import HeadView, LensReading, LogitShare, NeuronEffect
from interpret.records.table import column, columns, csv_header, from_cells, from_csv, to_cells, to_csv
from interpret.records.traces import APPROXIMATE, EXACT, SCREENED, TraceAverage, TraceCell, TracePeak

__all__ = [
    "APPROXIMATE",
    "EXACT",
    "SCREENED",
    "HeadView",
    "Interpretation",
    "LensReading",
    "LocationAverage",
    "LocationCell",
    "LogitShare",
    "NeuronEffect",
    "Preservation",
    "TokenScore",
    "TraceAverage",
    "TraceCell",
    "TracePeak",
    "column",
    "columns",
    "csv_header",
    "from_cells",
    "from_csv",
    "to_cells",
    "to_csv",
]
