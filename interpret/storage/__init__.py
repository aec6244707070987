"""Files of runs: crash-safe run folders, hashes of inputs and weights, and tables of several runs joined."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
