"""Self-interpretation: a model describes its own hidden states in words (SelfIE)."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
