"""The counts of one sequence in a journal."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counted:
    """The counts of one sequence.

    computed_tokens  prompt positions computed or found in the cache; only known if `cut` is not empty
    committed        tokens that the engine counted
    delivered        tokens in frames that the edge received
    reason           the reason of the sequence's end; empty: it has none yet
    cut              `disconnect` or `abort` if the engine ended the sequence because its caller had left, else empty
    """

    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    committed: int = 0
    delivered: int = 0
    has_ended: bool = False
    reason: str = ""
    cut: str = ""
