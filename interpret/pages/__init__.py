"""Self-contained HTML pages: one file each, which loads nothing from elsewhere."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
