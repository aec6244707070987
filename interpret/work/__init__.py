"""Runs at work: the loop that fills a run folder, its progress bar, and extensions of the user's own."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
