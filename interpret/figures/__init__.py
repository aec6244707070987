"""Figures, drawn from stored rows and recorded activations."""
