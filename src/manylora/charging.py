"""What of a request's tokens is paid for. `docs/metering.md` has the table that this computes."""

from collections.abc import Sequence
from dataclasses import dataclass

FAULTS = frozenset(
    {"rejected", "queue_timeout", "adapter_failure", "engine_failure", "shutdown", "edge_lost", "incomplete"}
)
"""Ends that are not the caller's doing."""
CUTS = frozenset({"abort", "disconnect"})
"""Ends that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceUse:
    """One sequence's end. committed: tokens that the engine counted; delivered: those that reached the edge."""

    prompt: int
    prompt_tokens: int
    cached_tokens: int
    committed: int
    delivered: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Tokens used and tokens charged, of all sequences. A prompt counts once however many sequences share it."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_completion_tokens: int


def charge_of(sequences: Sequence[SequenceUse], *, is_streamed: bool) -> Charge:
    """Count and charge the sequences of one HTTP request; `prompt` numbers the prompts they continue.

    Committed tokens are always counted. Charged are those that reached the edge, with the prompts, but nothing where
    a fault or the caller's leaving came before the first token, or a fault took away a reply that was not streamed.
    """
    firsts: dict[int, SequenceUse] = {}
    for sequence in sequences:
        firsts.setdefault(sequence.prompt, sequence)
    prompt_tokens = sum(first.prompt_tokens for first in firsts.values())
    delivered = sum(sequence.delivered for sequence in sequences)
    reasons = {sequence.reason for sequence in sequences}
    is_faulty = bool(reasons & FAULTS)
    is_free = (is_faulty and not is_streamed) or (bool(reasons & (FAULTS | CUTS)) and not delivered)
    return Charge(
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(first.cached_tokens for first in firsts.values()),
        completion_tokens=sum(sequence.committed for sequence in sequences),
        charged_prompt_tokens=0 if is_free else prompt_tokens,
        charged_completion_tokens=0 if is_free else delivered,
    )
