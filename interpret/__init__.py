"""Read and edit the hidden states of Hugging Face language models; the weights stay untouched.

This package exports the public names; everything else may change between versions. docs/architecture.md explains the
structure.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
