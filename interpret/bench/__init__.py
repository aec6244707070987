"""The bench on which experiments are made: analyses by name, a log of what was run, tests, timings and figures.

``experiment`` is what a user opens. It hands out the tools of ``tools`` by name (``injection``), writes calls to a
``log`` (as ``values``, under a hash of their ``source``), tests hypotheses (``hypothesis``) and measures passes
(``profiling``). ``plots`` draws, on a ``canvas``, what ``interpret.probing`` reads off a model.
"""
