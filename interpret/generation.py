"""The surgery functions that patched files of transformers import; this module path is the same in every version."""

from interpret.surgery.generation import forward_interpret, generate_interpret, greedy_search_interpret

__all__ = ["forward_interpret", "generate_interpret", "greedy_search_interpret"]
