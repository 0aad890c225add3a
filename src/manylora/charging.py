"""The tokens of a request that its tenant pays for: the table of `docs/billing.md` as a pure function."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FAULTS = frozenset(
    {"rejected", "queue_timeout", "adapter_failure", "engine_failure", "shutdown", "edge_lost", "incomplete"}
)
"""Reasons of an end that the caller did not cause."""
CUTS = frozenset({"abort", "disconnect"})
"""Reasons of an end that the caller caused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceUse:
    """The end of one sequence.

    computed_tokens  prompt positions that were computed or found in the cache, as in `usage.Counts`
    committed        tokens that the engine counted
    delivered        tokens that reached the edge
    is_callers       the engine refused the caller's request; the server has no fault
    """

    prompt: int
    prompt_tokens: int
    cached_tokens: int
    committed: int
    delivered: int
    reason: str
    computed_tokens: int = 0
    is_callers: bool = False

    @property
    def is_fault(self) -> bool:
        return self.reason in FAULTS and not self.is_callers

    @property
    def is_whole(self) -> bool:
        """Return whether the whole prompt was computed for a token, or an end, that counts."""
        return self.delivered > 0 or self.reason not in FAULTS | CUTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """Tokens used and tokens charged, of all sequences. A prompt counts once however many sequences share it.

    charged_cached_tokens  the part of `charged_prompt_tokens` that costs the price of cached tokens
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    charged_prompt_tokens: int
    charged_completion_tokens: int
    charged_cached_tokens: int = 0


def charge_of(sequences: Sequence[SequenceUse], *, is_streamed: bool) -> Charge:
    """Count and charge the sequences of one HTTP request; `prompt` numbers the prompts they continue.

    Committed tokens are always counted. The tenant pays for the tokens that reached the edge, with their prompts. Of a
    prompt without such a token it pays for the positions that were computed before the caller left. A fault of the
    server before the first token, or on a reply that was not streamed, makes the request free.
    """
    prompts: dict[int, list[SequenceUse]] = {}
    for sequence in sequences:
        prompts.setdefault(sequence.prompt, []).append(sequence)
    delivered = sum(sequence.delivered for sequence in sequences)
    is_faulty = any(sequence.is_fault for sequence in sequences)
    is_free = is_faulty and not (is_streamed and delivered)
    charged = [(uses[0], 0 if is_free else _charged_of(uses, is_faulty=is_faulty)) for uses in prompts.values()]
    return Charge(
        prompt_tokens=sum(first.prompt_tokens for first, _ in charged),
        cached_tokens=sum(first.cached_tokens for first, _ in charged),
        completion_tokens=sum(sequence.committed for sequence in sequences),
        charged_prompt_tokens=sum(tokens for _, tokens in charged),
        charged_completion_tokens=0 if is_free else delivered,
        charged_cached_tokens=sum(min(first.cached_tokens, tokens) for first, tokens in charged),
    )


def _charged_of(uses: Iterable[SequenceUse], *, is_faulty: bool) -> int:
    """Return the positions of one prompt that are paid for. They count once for all sequences of the prompt."""
    return max(
        use.prompt_tokens if use.is_whole else 0 if is_faulty else min(use.computed_tokens, use.prompt_tokens)
        for use in uses
    )
