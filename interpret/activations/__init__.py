"""What a model computes on its way: recorded in one pass, kept by name over many, and edited."""
