"""The address at which patched files of transformers find the surgery calls; it stays the same in every version."""

from interpret.surgery.generation import forward_interpret, generate_interpret, greedy_search_interpret

__all__ = ["forward_interpret", "generate_interpret", "greedy_search_interpret"]
