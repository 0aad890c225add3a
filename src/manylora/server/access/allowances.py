"""The allowances of one edge: what it holds of the fleet's limits, and what it asks for. Arithmetic without a network.

While the control plane does not answer the edge is apart: it uses what it holds, and beside that its part of what was
free, which is the free amount divided by the edges. Of a rate it further gains its part of the limit. So the fleet
stays within the limit as long as all its edges are apart together. What an edge uses beyond its grants it claims later.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manylora.allowances import (
    MINUTE_S,
    MOST_WISHES,
    REPORT_S,
    VALID_S,
    AllowanceAnswer,
    AllowanceReport,
    AllowanceWish,
    LimitKind,
)

IDLE_S = 60.0
"""Seconds without use after which the edge gives back all that it holds of an allowance, and forgets it."""
EASY_SHARE = 0.5
"""Free part of a limit from which on edges keep a reserve that they do not need at once."""
MOST_SHARE = 0.1
"""Largest part of a limit that an edge keeps for requests to come."""
PACE_DECAY = 0.7

Key = tuple[str, LimitKind]


@dataclass(slots=True)
class EdgeAllowance:
    """One allowance. Rates: amounts since it began. Streams: amounts at this moment.

    count    number of the allowance at its edge: one that was forgotten and begins anew has another
    granted  what the edge claims
    used     what requests have taken of it
    level    free amount of the fleet's pool as last told; None: never told
    drawn    a rate: taken since the last report; streams: most taken at one time since then
    pace     decaying maximum of `drawn`
    spare    while the edge is apart: what it may use beyond `granted`; None: not apart yet
    """

    name: str
    kind: LimitKind
    limit: int
    count: int = 0
    granted: int = 0
    used: int = 0
    level: float | None = None
    told_s: float = 0.0
    drawn: int = 0
    pace: float = 0.0
    touched_s: float = 0.0
    listed_s: float = -math.inf
    listed: int = 0
    spare: float | None = None
    spare_s: float = 0.0

    @property
    def is_rate(self) -> bool:
        return self.kind is not LimitKind.STREAMS

    @property
    def held(self) -> int:
        return self.granted - self.used

    def free(self, now_s: float) -> float:
        """Return the free amount of the pool as it may be now: infinity if it is unknown."""
        if self.level is None:
            return math.inf
        if not self.is_rate:
            return self.level if now_s - self.told_s < REPORT_S else math.inf
        return min(float(self.limit), self.level + (now_s - self.told_s) * self.limit / MINUTE_S)

    def kept(self, now_s: float) -> int:
        """Return what the edge keeps or wants beside what is in use: by its pace, and a reserve where much is free."""
        if now_s - self.touched_s >= IDLE_S:
            return 0
        is_easy = self.level is None or self.level >= EASY_SHARE * self.limit
        reserve = max(1, self.limit // 60 if self.is_rate else self.limit // 20) if is_easy else 0
        wanted = int(2 * self.pace) if self.is_rate else max(0, round(self.pace) - self.used)
        return min(wanted + reserve, max(1, int(MOST_SHARE * self.limit)))


@dataclass(frozen=True, slots=True)
class Ask:
    """An amount that a request needs of one allowance.

    least   the smallest amount that serves the request: below `amount` for streams alone
    margin  what must stay free in the fleet's pool beside it: of a line of a batch
    """

    allowance: EdgeAllowance
    amount: int
    least: int
    margin: int = 0


class Allowances:
    """All allowances of one edge."""

    def __init__(self, edge: str) -> None:
        self.edge = edge
        self.edges = 1
        self.is_apart = False
        self.answered_s = -math.inf
        self._reported_s = -math.inf
        self._all: dict[Key, EdgeAllowance] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._all)

    def find(self, name: str, kind: LimitKind, limit: int, now_s: float) -> EdgeAllowance:
        """Return the allowance of a limit, which may have changed."""
        found = self._all.get((name, kind))
        if found is None:
            self._count += 1
            found = self._all[name, kind] = EdgeAllowance(name, kind, limit, self._count)
        found.limit, found.touched_s = limit, now_s
        return found

    def available(self, each: EdgeAllowance, now_s: float) -> int:
        """Return what a request may take now."""
        if not self.is_apart:
            return max(0, each.held)
        if not each.is_rate and now_s - self.answered_s >= VALID_S:  # the permits are void
            return max(1, each.limit // self.edges) - each.used
        return max(0, each.held) + math.floor(self._spare(each, now_s))

    def draw(self, ask: Ask, now_s: float) -> int:
        """Take an amount that `available` covers, and return it."""
        each = ask.allowance
        taken = min(ask.amount, max(ask.least, self.available(each, now_s)))
        beyond = taken - max(0, each.held)
        if beyond > 0:
            each.granted += beyond
            each.spare = max(0.0, self._spare(each, now_s) - beyond)
        each.used += taken
        each.drawn = each.drawn + taken if each.is_rate else max(each.drawn, each.used)
        return taken

    def give_back(self, each: EdgeAllowance, amount: int) -> None:
        """Take back what a request has not used, or the streams that it has ended."""
        each.used -= amount
        if each.is_rate:
            each.drawn = max(0, each.drawn - amount)

    def question(self, asks: Sequence[Ask], now_s: float) -> list[AllowanceReport]:
        """Return the report, in parts, of requests that wait for more than the edge holds."""
        asked: dict[Key, list[Ask]] = {}
        for ask in asks:
            asked.setdefault((ask.allowance.name, ask.allowance.kind), []).append(ask)
        wishes = []
        for found in asked.values():
            each, held = found[0].allowance, max(0, found[0].allowance.held)
            least = min(ask.least for ask in found) - held
            needed = max(1, least + min(ask.margin for ask in found))
            wanted = max(1, least, sum(ask.amount for ask in found) - held + each.kept(now_s))
            wishes.append(self._wish(each, needed, wanted, now_s))
        return self._parts(wishes)

    def report(self, now_s: float) -> list[AllowanceReport]:
        """Return the regular report in parts: it gives back what exceeds the need, and asks for what the pace needs."""
        self._reported_s = now_s
        wishes = []
        for key, each in list(self._all.items()):
            each.pace = max(float(each.drawn), PACE_DECAY * each.pace)
            each.drawn = 0 if each.is_rate else each.used
            kept = each.kept(now_s)
            each.granted -= max(0, each.held - kept)
            wanted = max(0, kept - each.held) if each.pace >= 1 else 0
            if self._is_over(each, now_s):
                del self._all[key]
            elif wanted or self._is_listed(each, now_s):
                wishes.append(self._wish(each, 0, wanted, now_s))
        return self._parts(wishes)

    def farewell(self, now_s: float) -> list[AllowanceReport]:
        """Return the last report in parts. It gives back all that requests have not taken."""
        wishes = []
        for each in self._all.values():
            if each.is_rate:
                each.granted -= max(0, each.held)
                if not _is_told(each):
                    wishes.append(self._wish(each, 0, 0, now_s))
        *parts, last = self._parts(wishes)
        return [*parts, replace(last, is_leaving=True)]

    def is_due(self, now_s: float) -> bool:
        """Return whether the edge should report now: it uses its allowances, or has not reported for long."""
        if self.is_apart or now_s - self._reported_s >= VALID_S / 4:
            return True
        return any(now_s - each.touched_s < 2 * REPORT_S or each.pace >= 1 for each in self._all.values())

    def apply(self, sent: AllowanceReport, answer: AllowanceAnswer, sent_s: float, now_s: float) -> list[EdgeAllowance]:
        """Take over an answer. Return the allowances of which it has the free amount.

        Args:    sent_s  moment at which the report left: the answer's state is at least as new
        """
        self.edges, self.answered_s = max(1, answer.edges), sent_s
        if self.is_apart:
            self.is_apart = False
            for each in self._all.values():
                each.spare = None
        told = []
        for wish, given in zip(sent.wishes, answer.allowances, strict=True):
            found = self._all.get((wish.name, wish.kind))
            if found is not None:
                found.granted += given.granted - wish.claimed
                found.level, found.told_s = given.level, now_s
                told.append(found)
        return told

    def part(self, now_s: float) -> None:
        """Note that the control plane does not answer."""
        if not self.is_apart:
            self.is_apart = True
            for each in self._all.values():
                each.spare = None

    def _wish(self, each: EdgeAllowance, needed: int, wanted: int, now_s: float) -> AllowanceWish:
        each.listed_s, each.listed = now_s, each.granted
        level = each.level
        if self.is_apart:  # what all edges together may have left, if each has used as much as this one
            level = None if each.spare is None else each.spare * self.edges
        return AllowanceWish(
            name=each.name,
            kind=each.kind,
            limit=each.limit,
            claimed=each.granted,
            needed=needed,
            wanted=min(wanted, each.limit),
            level=level,
            count=each.count if each.is_rate else 0,
        )

    def _parts(self, wishes: Sequence[AllowanceWish]) -> list[AllowanceReport]:
        starts = range(0, max(1, len(wishes)), MOST_WISHES)
        return [AllowanceReport(edge=self.edge, wishes=tuple(wishes[at : at + MOST_WISHES])) for at in starts]

    def _is_over(self, each: EdgeAllowance, now_s: float) -> bool:
        """Return whether the edge may forget an allowance: it is idle, and the control plane has its last claim."""
        if self.is_apart or not _is_told(each) or each.held or (each.used and not each.is_rate):
            return False
        return now_s - each.touched_s >= IDLE_S

    def _is_listed(self, each: EdgeAllowance, now_s: float) -> bool:
        if not _is_told(each) or now_s - each.touched_s < 2 * REPORT_S:
            return True
        return (each.held > 0 or each.used > 0) and now_s - each.listed_s >= VALID_S / 4

    def _spare(self, each: EdgeAllowance, now_s: float) -> float:
        """Return what an edge that is apart may use beyond its grants, filled up to this moment."""
        part = each.limit / self.edges
        if each.spare is None:
            if each.level is not None:
                each.spare, each.spare_s = max(0.0, each.level / self.edges), each.told_s
            else:
                each.spare, each.spare_s = part if each.is_rate else max(1.0, float(math.floor(part))), now_s
        if each.is_rate:
            each.spare = min(max(part, each.spare), each.spare + (now_s - each.spare_s) * part / MINUTE_S)
        each.spare_s = now_s
        return each.spare


def _is_told(each: EdgeAllowance) -> bool:
    """Return whether the control plane has answered the claim as it is now."""
    return each.granted == each.listed and each.told_s >= each.listed_s
