"""Facts: read fact files, filter the facts a model knows, and process them in run folders."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
