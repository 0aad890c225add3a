"""Structured output: grammars compiled beside the steps, and the matchers that say which tokens may come next."""
