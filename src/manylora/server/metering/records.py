"""The usage record of one HTTP request, from the ends of its sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.charging import Charge, SequenceUse
from manylora.server.metering.spool import Opened
from manylora.usage import UsageRecord

WORST_FIRST = (
    *("engine_failure", "edge_lost", "shutdown", "adapter_failure", "queue_timeout", "rejected", "incomplete"),
    *("disconnect", "abort", "length", "stop_string", "stop_token", "end_of_sequence"),
)
"""Finish reasons in the order of precedence: a record has the first of those that the request's sequences have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The times, adapter version and adapter tier of a request; None for a time that does not apply."""

    digest: str | None = None
    tier: str | None = None
    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    total_ms: float | None = None


NO_TIMINGS = Timings()


def record_of(opened: Opened, edge: str, uses: Sequence[SequenceUse], charge: Charge, timings: Timings) -> UsageRecord:
    reasons = {use.reason for use in uses}
    return UsageRecord(
        id=opened.id,
        tenant=opened.tenant,
        key=opened.key,
        request_id=opened.request_id,
        edge=edge,
        base=opened.base,
        adapter=opened.adapter,
        adapter_source=opened.adapter_source,
        adapter_owner=opened.adapter_owner,
        adapter_digest=timings.digest,
        opened_ms=opened.opened_ms,
        prompt_tokens=charge.prompt_tokens,
        cached_tokens=charge.cached_tokens,
        completion_tokens=charge.completion_tokens,
        charged_prompt_tokens=charge.charged_prompt_tokens,
        charged_completion_tokens=charge.charged_completion_tokens,
        charged_cached_tokens=charge.charged_cached_tokens,
        num_sequences=len(opened.requests),
        finish_reason=next((reason for reason in WORST_FIRST if reason in reasons), "incomplete"),
        tier=timings.tier,
        queue_ms=timings.queue_ms,
        load_ms=timings.load_ms,
        first_token_ms=timings.first_token_ms,
        total_ms=timings.total_ms,
        is_batch=opened.is_batch,
    )
