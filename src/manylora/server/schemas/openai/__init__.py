"""Bodies and replies of OpenAI's routes, by subject."""
