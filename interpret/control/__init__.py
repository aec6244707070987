"""Training one MLP until a hidden state says something else, and what that leaves unchanged."""
