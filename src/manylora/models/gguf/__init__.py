"""GGUF files as checkpoints: metadata, tensors and their dequantisers, the spec and the tokenizer. Without torch."""
