"""One page a fact: what every method says of the same tokens and layers, and how far they agree."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
