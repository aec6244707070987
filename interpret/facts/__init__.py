"""Facts: read from files, filtered by what a model knows, and worked through in a run folder."""
