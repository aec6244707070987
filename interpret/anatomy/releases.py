"""Opening a model: which files a release reads, and how it is asked for what is in them."""

from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig

_ERRORS_TELL_SHAPES = find_spec("transformers.core_model_loading") is None
"""Whether the error over a weight of another shape says which; from transformers 5 on the loading report does."""


def reads_gguf() -> bool:
    """Whether ``from_pretrained`` reads GGUF files, which transformers 4.34.0 does not."""
    return hasattr(transformers.utils, "is_gguf_available")


def loading_arguments(dtype: torch.dtype | str) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` for a number format, and for shapes to be told where they differ.

    ``torch_dtype`` is an old name, which is going.
    """
    arguments = {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}
    return arguments if _ERRORS_TELL_SHAPES else {**arguments, "ignore_mismatched_sizes": True}
