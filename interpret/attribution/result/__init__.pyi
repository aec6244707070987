from .attribution import Attribution as Attribution
from .scores import Attributed as Attributed
from .scores import AttributionInfo as AttributionInfo
from .scores import AttributionScores as AttributionScores
