"""Causal tracing: find the hidden states that carry a fact (ROME, Knowledge-Tracing)."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
