"""One planned step: its batch of tensors, the forward pass, and the draw of its tokens."""
