"""Attribution: which tokens and which layers the predictions of a model depend on.

prompts -> ``targets`` (tokenized texts, and which of their tokens are attributed) -> ``steps`` (the attributed value
of each token, as a function of the embeddings) -> a method (``methods``) -> ``result``.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
