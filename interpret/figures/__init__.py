"""Figures that join the results of many prompts; a single result draws itself by ``figure``."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
