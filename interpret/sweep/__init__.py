"""Many patched runs of one base run, with exact results and shared computation.

``cells`` defines what can be restored and held constant, ``metrics`` what is read, ``columns`` runs the cells of one
token, and ``exact`` combines them; ``whole_passes`` shares no computation. ``estimates`` estimates the same cells from
the derivatives that ``backward`` computes. ``base_and_donor`` checks the two runs; ``kept_runs`` shares them between
several sweeps.
"""

from interpret.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
