"""Opening models: from a folder, the hub, a GGUF file or the demo package, quantized or not."""
