"""Text of a base model: tokenizer, chat templates, and adapters' changes of both."""
