"""A model run part by part, so that what many runs have in common is computed once."""
