"""Bodies and replies of LoRAX's routes."""
