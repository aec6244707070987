"""Open a Hugging Face language model, operate on its hidden states, and close it unchanged."""
