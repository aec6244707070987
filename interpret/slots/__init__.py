"""Prompts with slots: hidden states are inserted into a slot, and what the model says after it is decoded or scored."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
