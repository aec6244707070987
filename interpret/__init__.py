"""Open a Hugging Face language model, operate on its hidden states, and close it unchanged.

The public names; everything else may change between versions. docs/architecture.md shows how they fit together.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
