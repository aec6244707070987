"""Control of reasoning: train one MLP to change a hidden state, and measure which facts are preserved."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
