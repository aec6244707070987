"""Causal tracing: which states carry a fact (ROME, Knowledge-Tracing)."""
