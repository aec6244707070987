"""Read files that users write: text, JSON, JSON Lines, tables and YAML, with bounds on depth, size and work."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
