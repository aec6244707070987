"""One attributed token: what is attributed, as a function of the embeddings before it."""
