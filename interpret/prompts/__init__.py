"""From texts to token ids: prompt files, chat templates, subjects, selectors and padded batches."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
