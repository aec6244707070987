"""The result of an attribution: its scores, aggregation, display and files."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
