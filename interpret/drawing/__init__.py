"""Building blocks of matplotlib figures: panels, heatmaps, lines over layers, colours and styles."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
