"""Experiments on one model: analyses as tools, a log of calls, hypothesis tests, and profiles of forward passes.

``experiment`` is the entry point. It passes the tools of ``tools`` to functions by argument name (``injection``),
writes calls to a ``log`` (encoded by ``values``, versioned by a hash that includes their ``source``), tests hypotheses
(``hypothesis``) and profiles forward passes (``profiling``).
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
