"""The limits of a fleet at one of its edges: requests take from its allowances, and wait for more only if need be.

`Limiter` counts each request first, as on a server alone. It refuses what is beyond the whole limit, and its buckets
never hold more than the fleet has left as the edge knows it, so that headers and refusals tell the fleet's state.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from manylora.allowances import MINUTE_S, REPORT_S, AllowanceReport, LimitKind
from manylora.clock import Clock
from manylora.errors import ControlUnavailable, LimitExceeded
from manylora.server.access.allowances import Allowances, Ask, EdgeAllowance
from manylora.server.access.control_client import ControlClient
from manylora.server.access.limits import Limiter, Reservation, refusal

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Questions of one request: other requests may take what the answer to its question has brought."""


@dataclass(slots=True)
class AllowanceHold:
    """The part of the edge's allowances that one request has taken; its reservation settles it.

    counted  number of the reservation's holders whose requests and streams have been taken
    """

    allowances: Allowances
    counted: int = 0
    streams: list[tuple[EdgeAllowance, int]] = field(default_factory=list)
    tokens: list[tuple[EdgeAllowance, int]] = field(default_factory=list)

    def settle(self, used_tokens: int) -> None:
        """Return the streams, and the tokens beyond `used_tokens`."""
        for each, amount in self.streams:
            self.allowances.give_back(each, amount)
        for each, amount in self.tokens:
            self.allowances.give_back(each, amount - min(used_tokens, amount))
        self.streams, self.tokens = [], []


class FleetLimits:
    """The allowances of this edge and their exchange with the control plane. It belongs to one event loop."""

    def __init__(self, client: ControlClient, clock: Clock, limiter: Limiter, *, edge: str) -> None:
        self.allowances = Allowances(edge)
        self._client = client
        self._clock = clock
        self._limiter = limiter
        self._asking = asyncio.Lock()
        self._waiting: list[Ask] = []
        self._exchanges = 0

    async def enter(self, reservation: Reservation) -> None:
        """Take one request, and its streams, of each of the reservation's holders that are new since the last call.

        The reservation's streams become those that the fleet has left, at least 1 of any.
        Raises `RequestRateExceeded`, `StreamLimitExceeded`. The caller must settle the reservation in that case, too.
        """
        hold = self._hold(reservation)
        now_s, asks, streams = self._clock.monotonic_s(), list[Ask](), list[Ask]()
        for each in reservation.held[hold.counted :]:
            requests, most = each.limits.requests_per_minute, each.limits.concurrent_streams
            if requests is not None:
                asks.append(Ask(self.allowances.find(each.name, LimitKind.REQUESTS, requests, now_s), 1, 1))
            if most is not None and reservation.streams:
                allowance = self.allowances.find(each.name, LimitKind.STREAMS, most, now_s)
                margin = most - most // 2 if reservation.is_batch and most > 1 else 0
                streams.append(Ask(allowance, reservation.streams, 1, margin))
        try:
            await self._require([*asks, *streams], reservation)
        except LimitExceeded:
            reservation.uncount(hold.counted)
            raise
        hold.counted = len(reservation.held)
        self._draw(asks)
        now_s = self._clock.monotonic_s()
        least = min((min(ask.amount, self.allowances.available(ask.allowance, now_s)) for ask in streams), default=0)
        if streams:
            reservation.narrow_streams(least)
            taken = [Ask(ask.allowance, least, least) for ask in streams]
            hold.streams += [(ask.allowance, amount) for ask, amount in zip(taken, self._draw(taken), strict=True)]

    async def reserve(self, reservation: Reservation) -> None:
        """Take the reservation's tokens of each of its holders. Raises `TokenRateExceeded`, as `enter`."""
        hold, tokens = self._hold(reservation), reservation.tokens
        now_s, asks = self._clock.monotonic_s(), list[Ask]()
        for each in reservation.held:
            if (limit := each.limits.tokens_per_minute) is not None and tokens:
                asks.append(Ask(self.allowances.find(each.name, LimitKind.TOKENS, limit, now_s), tokens, tokens))
        await self._require(asks, reservation)
        hold.tokens += [(ask.allowance, amount) for ask, amount in zip(asks, self._draw(asks), strict=True)]

    async def follow(self) -> None:
        """Report to the control plane until cancelled, also while it does not answer."""
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                await self.refresh()
            except Exception:  # the reports must go on after any error: without them the edge's permits end
                log.exception("limits.report_failed")

    async def refresh(self) -> None:
        """Send the regular report if it is due."""
        if self.allowances.is_due(self._clock.monotonic_s()):
            async with self._asking:
                await self._exchange_all(self.allowances.report(self._clock.monotonic_s()))

    async def leave(self) -> None:
        """Give back everything: the edge ends."""
        async with self._asking:
            await self._exchange_all(self.allowances.farewell(self._clock.monotonic_s()))

    def _hold(self, reservation: Reservation) -> AllowanceHold:
        if not isinstance(reservation.fleet_hold, AllowanceHold):
            reservation.fleet_hold = AllowanceHold(self.allowances)
        return reservation.fleet_hold

    def _draw(self, asks: Sequence[Ask]) -> list[int]:
        now_s = self._clock.monotonic_s()
        return [self.allowances.draw(ask, now_s) for ask in asks]

    async def _require(self, asks: Sequence[Ask], reservation: Reservation) -> None:
        """Wait until the edge holds all amounts. Raises the refusal of the first that the fleet does not have."""
        for attempt in range(ATTEMPTS + 1):
            now_s = self._clock.monotonic_s()
            short = [ask for ask in asks if self.allowances.available(ask.allowance, now_s) < ask.least]
            if not short:
                return
            if attempt == ATTEMPTS or self.allowances.is_apart or not self._may_grow(short, now_s):
                error = self._refusal(short[0], now_s)
                error.headers = self._limiter.headers(reservation)
                raise error
            await self._ask(short)

    def _may_grow(self, short: Sequence[Ask], now_s: float) -> bool:
        """Return whether the pools may have what is missing, as far as this edge knows."""
        return all(
            ask.allowance.free(now_s) >= ask.least + ask.margin - self.allowances.available(ask.allowance, now_s)
            for ask in short
        )

    async def _ask(self, short: Sequence[Ask]) -> None:
        """Put a question, together with those of other requests that wait: one exchange is under way at a time."""
        self._waiting += short
        begun = self._exchanges
        async with self._asking:
            if self._exchanges == begun:
                self._exchanges += 1
                asks, self._waiting = self._waiting, []
                await self._exchange_all(self.allowances.question(asks, self._clock.monotonic_s()))

    async def _exchange_all(self, parts: Sequence[AllowanceReport]) -> None:
        """Send the parts of a report, until the control plane does not answer one: the next report has the rest."""
        for part in parts:
            await self._exchange(part)
            if self.allowances.is_apart:
                return

    async def _exchange(self, report: AllowanceReport) -> None:
        sent_s = self._clock.monotonic_s()
        was_apart = self.allowances.is_apart
        try:
            answer = await self._client.share_limits(report)
        except ControlUnavailable as error:
            if not was_apart:
                log.warning("limits.apart edges=%d error=%s", self.allowances.edges, error.message)
            self.allowances.part(self._clock.monotonic_s())
            return
        if was_apart:
            log.warning("limits.together_again edges=%d", answer.edges)
        now_s = self._clock.monotonic_s()
        for each in self.allowances.apply(report, answer, sent_s, now_s):
            if each.is_rate and each.level is not None:
                self._limiter.learn(each.name, each.kind, max(0, each.held) + max(0.0, each.level))

    def _refusal(self, ask: Ask, now_s: float) -> LimitExceeded:
        """Return the refusal of an amount that the fleet, or an edge apart, does not have."""
        each = ask.allowance
        part = each.limit / self.allowances.edges if self.allowances.is_apart else each.limit
        free = 0.0 if self.allowances.is_apart or each.level is None else each.free(now_s)
        missing = max(1.0, ask.least - max(0, each.held) - free)
        return refusal(each.kind, each.name, each.limit, wait_s=missing * MINUTE_S / part if part else MINUTE_S)
