"""Text of a base model: tokenizer, chat templates, and what adapters change of both."""
