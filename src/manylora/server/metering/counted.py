"""One sequence in a journal: the tokens that were counted and those that the edge had received."""

from dataclasses import dataclass


@dataclass(slots=True)
class Counted:
    """The counts of one sequence.

    computed_tokens  prompt positions computed or found in the cache; known of a sequence in `cut` alone
    committed        tokens that the engine had counted
    delivered        tokens in frames that the edge had received
    cut              `disconnect` or `abort` if the engine had ended it because its caller had left, else empty
    """

    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    committed: int = 0
    delivered: int = 0
    has_ended: bool = False
    cut: str = ""
