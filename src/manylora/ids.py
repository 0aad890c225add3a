"""Identifiers: the thing that each one names, and the functions that make new ones."""

import secrets
from typing import NewType

RequestId = NewType("RequestId", str)
"""One generation (one sequence) in the engine. The server mints the id, and never uses it again."""

Flow = NewType("Flow", str)
"""The owner of a request for fair scheduling. The engine only compares it; the server makes each tenant a flow."""

TenantId = NewType("TenantId", str)
"""The short code of a tenant, which pays, and part of its paths.

It never changes and never passes to another tenant.
"""

KeyId = NewType("KeyId", str)
"""The public part of a platform key: the 8 characters after `pb_`."""

UsageId = NewType("UsageId", str)
"""The usage of one HTTP request with all its sequences. The server mints the id, and never uses it again."""

PROBE_FLOW = Flow("manylora-probe")
"""The flow of the server's own probes of its engine: no tenant's traffic, and never suspected of a crash."""

Digest = NewType("Digest", str)
"""Content identity of an adapter: hash of (canonical config, tensors, base fingerprint), 64 hex digits."""

ReplicaId = NewType("ReplicaId", str)
"""One start of an engine in a fleet: a replica that starts again has another id."""


def mint_request_id() -> RequestId:
    """Return a fresh request id: 32 hex digits from the system's random source."""
    return RequestId(secrets.token_hex(16))


def mint_usage_id() -> UsageId:
    """Return a fresh usage id: 32 hex digits from the system's random source."""
    return UsageId(secrets.token_hex(16))


def mint_seed() -> int:
    """Return a random seed below 2**53, so that every JSON reader keeps it exactly."""
    return secrets.randbits(53)
