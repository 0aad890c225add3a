"""The fleet's limits at the control plane: one bucket for each rate, one pool of permits for each limit of streams.

The pools live in memory: after a restart the edges' claims and their last known levels fill them again, so that a
request needs no transaction. A pool of a fresh control plane that no edge knows begins full.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

from manylora.allowances import (
    MINUTE_S,
    VALID_S,
    Allowance,
    AllowanceAnswer,
    AllowanceReport,
    AllowanceWish,
    LimitKind,
)
from manylora.clock import Clock

FORGET_S = 600.0
"""Seconds without a report after which a pool or an edge's record is dropped; a bucket is full again long before."""
MOST_POOLS = 10_000
"""Pools above which the control plane drops those without reports for `FORGET_S`."""
SUPPOSED_S = 2.0
"""Seconds for which permits count that one edge supposes at others and that no edge has claimed yet."""


class _Pool(Protocol):
    moment_s: float

    def settle(self, edge: str, wish: AllowanceWish, now_s: float) -> tuple[int, float]:
        """Take over an edge's claim and grant it more. Return the whole granted amount, and the free rest."""

    def forget(self, edge: str, now_s: float) -> None:
        """Drop the record of an edge that has left."""


@dataclass(slots=True)
class RatePool:
    """The token bucket of one rate. granted: by edge, the sum of its grants less what it gave back, and its number."""

    limit: int
    level: float
    moment_s: float
    granted: dict[str, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    def of(wish: AllowanceWish, now_s: float) -> "RatePool":
        return RatePool(wish.limit, float(wish.limit), now_s)

    def settle(self, edge: str, wish: AllowanceWish, now_s: float) -> tuple[int, float]:
        """Fill the bucket, take over the claim, grant. A claim above the record is use without a grant: a debt.

        A debt is at most one minute's allowance, so that a fleet is whole again a minute after an outage. A sum with a
        new number begins at 0: the edge has settled the former one, whose use stays used.
        """
        self.level = min(float(wish.limit), self.level + (now_s - self.moment_s) * self.limit / MINUTE_S)
        self.limit, self.moment_s = wish.limit, now_s
        known = self.granted.get(edge)
        if known is None:
            if wish.level is not None:
                self.level = min(self.level, wish.level)
        else:
            granted, count = known
            self.level += (granted if count == wish.count else 0) - wish.claimed
        self.level = max(-float(self.limit), min(float(self.limit), self.level))
        extra = _extra(wish, math.floor(self.level))
        self.level -= extra
        self.granted[edge] = (wish.claimed + extra, wish.count)
        return wish.claimed + extra, self.level

    def forget(self, edge: str, now_s: float) -> None:
        self.granted.pop(edge, None)


@dataclass(slots=True)
class StreamPool:
    """The permits of one limit of sequences at one time. permits: by edge, with the moment at which they are void."""

    moment_s: float
    permits: dict[str, tuple[int, float]] = field(default_factory=dict)
    supposed: int = 0
    supposed_end_s: float = 0.0

    @staticmethod
    def of(wish: AllowanceWish, now_s: float) -> "StreamPool":
        """Return an empty pool; permits that the first edge supposes at others count for `SUPPOSED_S`."""
        free = wish.limit if wish.level is None else int(wish.level)
        return StreamPool(now_s, supposed=max(0, wish.limit - wish.claimed - free), supposed_end_s=now_s + SUPPOSED_S)

    def settle(self, edge: str, wish: AllowanceWish, now_s: float) -> tuple[int, float]:
        self.moment_s = now_s
        others = sum(count for each, (count, end_s) in self.permits.items() if each != edge and end_s > now_s)
        if now_s < self.supposed_end_s:
            others = max(others, self.supposed)
        free = wish.limit - others - wish.claimed
        extra = _extra(wish, free)
        self.permits[edge] = (wish.claimed + extra, now_s + VALID_S)
        return wish.claimed + extra, float(free - extra)

    def forget(self, edge: str, now_s: float) -> None:
        self.permits.pop(edge, None)


class AllowancePools:
    """All pools of one control plane, and its edges. It belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pools: dict[tuple[str, LimitKind], _Pool] = {}
        self._seen_s: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._pools)

    def answer(self, report: AllowanceReport) -> AllowanceAnswer:
        """Take over an edge's claims, and grant what the pools have left."""
        now_s = self._clock.monotonic_s()
        if len(self._pools) > MOST_POOLS:
            self._pools = {key: pool for key, pool in self._pools.items() if now_s - pool.moment_s < FORGET_S}
        self._seen_s[report.edge] = now_s
        found = tuple(self._settled(report.edge, wish, now_s) for wish in report.wishes)
        gone = [edge for edge, seen_s in self._seen_s.items() if now_s - seen_s >= FORGET_S]
        for edge in [*gone, *([report.edge] if report.is_leaving else [])]:
            del self._seen_s[edge]
            for pool in self._pools.values():
                pool.forget(edge, now_s)
        edges = sum(now_s - seen_s < VALID_S for seen_s in self._seen_s.values())
        return AllowanceAnswer(allowances=found, edges=max(1, edges))

    def _settled(self, edge: str, wish: AllowanceWish, now_s: float) -> Allowance:
        key = (wish.name, wish.kind)
        pool = self._pools.get(key)
        if pool is None:
            kind = StreamPool if wish.kind is LimitKind.STREAMS else RatePool
            pool = self._pools[key] = kind.of(wish, now_s)
        granted, level = pool.settle(edge, wish, now_s)
        return Allowance(name=wish.name, kind=wish.kind, granted=granted, level=level)


def _extra(wish: AllowanceWish, free: int) -> int:
    return min(wish.wanted, free) if free >= max(1, wish.needed) else 0
