"""Who does the units of a run: this process, or workers on one or many machines."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
