"""Activations of a model: record them in a forward pass, cache them for many prompts, edit them."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
