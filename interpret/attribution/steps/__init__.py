"""One attributed token: its attributed value as a function of the embeddings of the tokens before it."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
