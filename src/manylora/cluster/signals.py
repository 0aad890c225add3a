"""Heartbeats of replicas and needs of requests as small plain values, for carriers of texts and dictionaries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from manylora.cluster.views import Heartbeat, Tier, Want
from manylora.ids import Digest, ReplicaId

MOST_ADAPTERS = 64
"""Adapters that a replica names in one signal, the nearest tiers first: the signal stays below 2 KB."""
FIRST_EPOCH = 1
_NOT_BASE = "0123456789abcdef"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """The state of a replica for every router.

    endpoint  `host:port` of its engine's own socket; empty: it has none
    tiers     the nearest tier of each adapter by its `routing_key`
    bank_bytes     of its bank of adapters
    adapter_bytes  mean bytes of the adapters on its device; 0: it has none
    """

    epoch: int
    backlog_tokens: float
    tokens_per_s: float
    in_flight: int = 0
    endpoint: str = ""
    tiers: Mapping[Digest, Tier]
    is_draining: bool = False
    bank_bytes: int = 0
    adapter_bytes: int = 0

    def values(self) -> dict[str, Any]:
        """Return the signal as JSON's values, with at most `MOST_ADAPTERS` adapters."""
        nearest = sorted(self.tiers.items(), key=lambda entry: entry[1])[:MOST_ADAPTERS]
        return {
            "epoch": self.epoch,
            "backlog_tokens": round(self.backlog_tokens, 1),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "in_flight": self.in_flight,
            "endpoint": self.endpoint,
            "draining": self.is_draining,
            "bank_bytes": self.bank_bytes,
            "adapter_bytes": self.adapter_bytes,
            "tiers": {str(key): int(tier) for key, tier in nearest},
        }


def heartbeat_of(replica: ReplicaId, values: Mapping[str, Any]) -> Heartbeat:
    """Return the heartbeat in a signal's values; a replica without values yet has just started.

    Raises `ValueError` for values that are no signal.
    """
    if not values:
        return Heartbeat(replica=replica, epoch=FIRST_EPOCH, backlog_tokens=0.0, tokens_per_s=1.0)
    try:
        return Heartbeat(
            replica=replica,
            epoch=int(values["epoch"]),
            backlog_tokens=float(values["backlog_tokens"]),
            tokens_per_s=float(values["tokens_per_s"]),
            tiers={Digest(key): Tier(tier) for key, tier in values["tiers"].items()},
            is_draining=bool(values["draining"]),
            bank_bytes=int(values["bank_bytes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no signal of replica {replica}: {error!r}") from error


def routing_key(name: str) -> Digest:
    """Return 48 bits of an adapter's full name as hex digits: the key under which signals and wants mean it."""
    return Digest(blake2b(name.encode(), digest_size=6).hexdigest())


def want_text(want: Want) -> str:
    """Return the needs of a request as one short text."""
    prefixes = ",".join(f"{key:x}" for key in want.prefixes)
    return f"{want.digest or '-'}|{want.num_bytes}|{want.tokens:g}|{want.prompt_tokens:g}|{prefixes}"


def want_of(text: str) -> Want:
    """Return the needs in a text of `want_text`. Raises `ValueError` for any other text."""
    parts = text.split("|")
    if len(parts) != 5:
        raise ValueError(f"no needs of a request: {text!r}")
    key, num_bytes, tokens, prompt_tokens = parts[0], int(parts[1]), float(parts[2]), float(parts[3])
    is_key = key == "-" or (bool(key) and set(key) <= set(_NOT_BASE))
    if not (is_key and num_bytes >= 0 and 0 <= tokens < math.inf and 0 <= prompt_tokens < math.inf):
        raise ValueError(f"no needs of a request: {text!r}")
    digest = None if key == "-" else Digest(key)
    prefixes = tuple(int(key, 16) for key in parts[4].split(",") if key)
    return Want(digest=digest, num_bytes=num_bytes, tokens=tokens, prompt_tokens=prompt_tokens, prefixes=prefixes)
