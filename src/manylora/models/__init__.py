"""Base models: their shape, weights, forward pass, tokenizer, and where they come from."""
