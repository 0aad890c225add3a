"""Identifiers: what each one names, and how it is minted."""

import secrets
from typing import NewType

RequestId = NewType("RequestId", str)
"""One generation (one sequence) in the engine; minted by the server, unique for ever."""

Flow = NewType("Flow", str)
"""The owner of a request for fair scheduling. Opaque to the engine; the server makes each tenant a flow."""

TenantId = NewType("TenantId", str)
"""The short code of a tenant, which pays; part of its paths. It never changes and never passes to another."""

KeyId = NewType("KeyId", str)
"""The public part of a platform key: the 8 characters after `pb_`."""

UsageId = NewType("UsageId", str)
"""One HTTP request's usage, whatever number of sequences it had; minted by the server, unique for ever."""

PROBE_FLOW = Flow("manylora-probe")
"""The flow of the server's own probes of its engine: no tenant's traffic, and never suspected of a crash."""

Digest = NewType("Digest", str)
"""Content identity of an adapter: hash of (canonical config, tensors, base fingerprint), 64 hex digits."""


def mint_request_id() -> RequestId:
    """Return a fresh request id: 32 hex digits from the system's random source."""
    return RequestId(secrets.token_hex(16))


def mint_usage_id() -> UsageId:
    """Return a fresh usage id: 32 hex digits from the system's random source."""
    return UsageId(secrets.token_hex(16))


def mint_seed() -> int:
    """Return a random seed below 2**53, so that every JSON reader keeps it exactly."""
    return secrets.randbits(53)
