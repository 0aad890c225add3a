"""The usage record of one HTTP request, from the ends of its sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from manylora.charging import Charge, SequenceUse
from manylora.server.engine_client.messages import UndeliveredCount
from manylora.server.metering.spool import Opened
from manylora.usage import FAILURES, UsageRecord

WORST_FIRST = (*FAILURES, "disconnect", "abort", "length", "stop_string", "stop_token", "end_of_sequence")
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


def charged(opened: Opened, charge: Charge) -> Charge:
    """Return the charge of a request. A shadow's tokens are counted, and no tenant pays for them."""
    if not opened.is_shadow:
        return charge
    return replace(charge, charged_prompt_tokens=0, charged_completion_tokens=0, charged_cached_tokens=0)


def record_of(opened: Opened, edge: str, uses: Sequence[SequenceUse], charge: Charge, timings: Timings) -> UsageRecord:
    reasons = {use.reason for use in uses}
    charge = charged(opened, charge)
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
        alias=opened.alias,
        is_shadow=opened.is_shadow,
        deployment=opened.deployment,
    )


def undelivered_record(count: UndeliveredCount, edge: str) -> UsageRecord:
    """Return the record of tokens that no edge has delivered: counted, and charged to no tenant."""
    return UsageRecord(
        id=count.id,
        tenant=count.tenant,
        key=None,
        request_id=count.request_id,
        edge=edge,
        base=count.base,
        adapter=count.adapter,
        adapter_source=count.adapter_source,
        adapter_owner=count.adapter_owner,
        adapter_digest=None,
        opened_ms=count.opened_ms,
        prompt_tokens=0,
        cached_tokens=0,
        completion_tokens=count.tokens,
        charged_prompt_tokens=0,
        charged_completion_tokens=0,
        charged_cached_tokens=0,
        num_sequences=0,
        finish_reason="edge_lost",
    )
