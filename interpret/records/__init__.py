"""Records: one frozen dataclass instance is one row of a results table.

``table`` writes them as CSV and reads them back; each other module defines the records of one analysis.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
