"""Opening models: from a folder, the hub, a GGUF file or the demo package, quantized or not."""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
