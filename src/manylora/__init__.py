"""manylora: one base model, thousands of fine-tuned models, paid by the token."""

__version__ = "0.1.0"
