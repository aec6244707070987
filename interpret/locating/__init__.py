"""Facts located by attribution: what each activation contributes to the answer."""
