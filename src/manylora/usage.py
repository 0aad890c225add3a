"""What a request used, as counts of token positions (never of work done)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Token counts of one finished request.

    prompt_tokens      prompt positions, counted once however often they were recomputed
    cached_tokens      those of the prompt whose keys and values came from the prefix cache at admission
    completion_tokens  tokens committed by the engine, end-of-sequence included
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens
