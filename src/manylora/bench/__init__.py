"""Loads and measurements of this engine, and of any server that speaks OpenAI's completions."""
