"""The CUDA back end without a card: devices that are refused, and its parts on tensors in host memory."""
