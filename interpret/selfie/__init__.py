"""Self-interpretation: a model says in words what one of its hidden states holds (SelfIE)."""
