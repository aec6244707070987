"""Self-interpretation: a model says in words what one of its hidden states holds (SelfIE)."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
