"""LoRAX's routes."""
