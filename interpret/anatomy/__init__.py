"""Module names of each model family, and the differences between releases of transformers.

Only this package depends on the module names of a family and, apart from ``surgery.generation``, on the release of
transformers. Releases are distinguished by the attributes they have, not by their version numbers. ``families`` is the
table of families; ``anatomy`` finds the parts of one model with it. ``encoder_decoders`` has the table and the parts of
models with an encoder. ``attention`` and ``vocabulary`` read the settings of the attention, the embeddings and the
unembedding. ``calls``, ``passes`` and ``patterns`` concern forward passes,
``generate_settings`` concerns ``generate``, and ``releases`` concerns opening models.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
