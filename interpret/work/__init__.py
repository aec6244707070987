"""Execution of runs: the loop that fills a run folder, its progress bar, inputs, and user extensions."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
