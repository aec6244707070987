from .registry import METHODS as METHODS
from .registry import AttributionMethod as AttributionMethod
from .registry import list_methods as list_methods
