"""How results show themselves: heat maps as tables in a terminal, as an HTML page, and as a matplotlib figure."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
