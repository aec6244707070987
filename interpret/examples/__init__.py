"""Example files: prompts, facts, pairs, the settings of a trace, and a notebook."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
