"""Run a model part by part, so that computation shared by many runs is done once."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
