"""Allowances: the parts of a fleet's limits that the control plane leases to its edges, in the words of both.

A limit of requests or tokens a minute is one token bucket at the control plane, and a limit of sequences at one time is
one pool of permits. An edge uses what it holds and asks for more; what it does not need it gives back.

Every wish names the whole amount that the edge claims, so that a lost message neither loses nor doubles an amount, and
every time span counts from a moment of the machine that measures it: clocks that differ change nothing.
"""

from dataclasses import dataclass
from enum import StrEnum

MINUTE_S = 60.0
MOST_WISHES = 250
"""Wishes of one message: some 30 kB of JSON, far below the control plane's `server.max_body_bytes`."""
VALID_S = 10.0
"""Seconds after an edge's last report until its permits are void, and until the edge counts no longer."""
REPORT_S = 0.5
"""Seconds between two reports of an edge whose allowances are in use; an idle edge reports every `VALID_S / 4`."""


class LimitKind(StrEnum):
    REQUESTS = "requests"
    TOKENS = "tokens"
    STREAMS = "streams"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceWish:
    """An edge's claim to a part of one limit, and its wish for more.

    name     of the holder: a tenant or a key, also with a base, as in the messages of refusals
    limit    requests a minute, tokens a minute, or sequences at one time
    claimed  a rate: the sum of all that the edge was granted and has not given back; streams: the permits it has
    needed   the least that the edge can use of `wanted`; the answer grants less than that by granting none
    level    free amount of the pool as the edge last knew it, for a control plane that has no record of the pool;
             None: the edge knows none
    count    a rate: number of the sum in `claimed`. An edge that has forgotten an idle rate begins a sum with a new
             number, which gives nothing of the former sum back
    """

    name: str
    kind: LimitKind
    limit: int
    claimed: int
    needed: int = 0
    wanted: int = 0
    level: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceReport:
    """Wishes of one edge, `MOST_WISHES` at most.

    is_leaving  the edge ends: it gives back what its last claims do not have, and claims nothing any more
    """

    edge: str
    wishes: tuple[AllowanceWish, ...] = ()
    is_leaving: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The answer to one wish. granted: the new `claimed`; level: the free amount of the pool after it."""

    name: str
    kind: LimitKind
    granted: int
    level: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowanceAnswer:
    """Allowances in the order of the wishes. edges: number of edges that reported within `VALID_S`."""

    allowances: tuple[Allowance, ...]
    edges: int
