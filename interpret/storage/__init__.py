"""Files that outlive a kill: run folders, and hashes of what their numbers come from."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
