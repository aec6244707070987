"""Editing hidden states during a forward pass or generation."""
