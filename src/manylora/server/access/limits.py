"""Limits of tenants and keys: requests a minute, tokens a minute, and sequences at one time.

The limiter counts a request before any work for it, and against the limits of its base as soon as that is known. Once
the prompt is known, the request reserves its largest number of tokens: the prompt and the whole budget. At its end the
limiter returns the unused part.
A limit a minute is a token bucket: it holds at most the allowance of one minute and fills evenly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from manylora.allowances import MINUTE_S, LimitKind
from manylora.clock import Clock
from manylora.errors import LimitExceeded, RequestRateExceeded, StreamLimitExceeded, TokenRateExceeded
from manylora.tenancy import BaseLimits, Limits

Rates = Limits | BaseLimits
"""Limits with the three numbers that count here."""
MAX_IDLE = 10_000
"""Holders (tenants, keys, and either with a base) above which the limiter forgets those without use (memory)."""


@dataclass(slots=True)
class Bucket:
    """A token bucket: use lowers its level, and time fills it by `limit` a minute up to `limit`."""

    limit: int
    level: float
    moment_s: float

    def fill(self, now_s: float, limit: int) -> None:
        """Fill the bucket up to the moment `now_s`, and take over a limit that may have changed."""
        gained = (now_s - self.moment_s) * self.limit / MINUTE_S
        self.level = min(float(limit), self.level + gained)
        self.limit, self.moment_s = limit, now_s

    def wait_s(self, amount: int) -> float:
        """Return the seconds until the bucket holds `amount`, which must be at most the limit."""
        return max(0.0, (amount - self.level) * MINUTE_S / self.limit) if self.limit else math.inf

    @property
    def reset_s(self) -> float:
        """Seconds until the bucket is full."""
        return (self.limit - self.level) * MINUTE_S / self.limit if self.limit else 0.0


@dataclass(slots=True)
class _Holder:
    """The current use of one tenant or of one key, of all bases or of a single one."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    streams: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """The places of one request in one holder. `name`: the holder's, for the messages."""

    name: str
    holder: _Holder
    limits: Rates
    streams: int


class FleetHold(Protocol):
    """The part of a fleet's limits that one request holds. counted: number of holders that it counts for."""

    counted: int

    def settle(self, used_tokens: int) -> None:
        """Return the unused part."""


@dataclass(slots=True)
class Reservation:
    """The share of the limits that one request holds; `settle` returns the unused part once.

    streams     sequences that may be under way at one time
    is_batch    a line of a batch leaves half of each limit to the holder's interactive requests
    fleet_hold  its part of the fleet's limits; None on a server alone
    """

    held: list[_Held] = field(default_factory=list)
    streams: int = 0
    tokens: int = 0
    is_settled: bool = False
    is_batch: bool = False
    fleet_hold: FleetHold | None = None

    def narrow_streams(self, streams: int) -> None:
        """Give back the streams beyond a smaller number, for every holder."""
        self.streams = min(self.streams, streams)
        for number, each in enumerate(self.held):
            if each.streams > self.streams:
                each.holder.streams -= each.streams - self.streams
                self.held[number] = replace(each, streams=self.streams)

    def uncount(self, first: int) -> None:
        """Count the request no more against the rates of the holders from number `first` on: the fleet refuses it."""
        for each in self.held[first:]:
            if each.holder.requests is not None:
                each.holder.requests.level += 1

    def settle(self, used_tokens: int) -> None:
        """End the request: charge `used_tokens` to the buckets and return the rest of the reservation."""
        if self.is_settled:
            return
        self.is_settled = True
        if self.fleet_hold is not None:
            self.fleet_hold.settle(used_tokens)
        for each in self.held:
            each.holder.streams -= each.streams
            if (tokens := each.holder.tokens) is not None:
                returned = self.tokens - min(used_tokens, self.tokens)
                tokens.level = min(float(tokens.limit), tokens.level + returned)


class Limiter:
    """The buckets of all tenants and keys. It belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holders: dict[str, _Holder] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def enter(self, limits: Mapping[str, Rates], *, streams: int, is_batch: bool = False) -> Reservation:
        """Count one request against every holder, or against none of them; call it before any work for the request.

        Args:    limits   the limits of each holder: of the tenant, and of its key
                 streams  number of the request's sequences; 0 for a request that generates nothing
                 is_batch  whether it is a line of a batch
        Raises:  `RequestRateExceeded`, `StreamLimitExceeded`, with the seconds to wait
        """
        reservation = Reservation(streams=streams, is_batch=is_batch)
        self._count(reservation, limits)
        return reservation

    def narrow(self, reservation: Reservation, limits: Mapping[str, Rates]) -> None:
        """Count a request against further holders: those of its base, which is known only now.

        Its sequences at one time become those that the holders have left. A refusal counts it against none of these,
        and it stays counted against the holders of `enter`, whose limits bound the work to find the base.
        Raises as `enter`. The caller must settle the reservation in that case, too.
        """
        reservation.streams = self.streams_left(limits, reservation.streams, is_batch=reservation.is_batch)
        self._count(reservation, limits)

    def streams_left(self, limits: Mapping[str, Rates], wanted: int, *, is_batch: bool = False) -> int:
        """Return the number of sequences that every holder has left for a request: at most `wanted`, at least 1 of any.

        The limits and `is_batch` are those of `enter`.
        """
        left = wanted
        for name, own in limits.items():
            if own.concurrent_streams is not None:
                holder = self._holders.get(name)
                most = own.concurrent_streams // 2 if is_batch else own.concurrent_streams
                left = min(left, most - (0 if holder is None else holder.streams))
        return max(left, min(1, wanted))

    def reserve(self, reservation: Reservation, tokens: int) -> None:
        """Reserve the largest number of tokens that a request can use, from every holder or from none.

        Raises `TokenRateExceeded`, with the seconds to wait. The caller must settle the reservation in that case, too.
        """
        now_s = self._clock.monotonic_s()
        for each in reservation.held:
            if (bucket := each.holder.tokens) is not None:  # its limit is that of the newest request, maybe another one
                bucket.fill(now_s, bucket.limit)
        _require(reservation.held, reservation.held, lambda each: _require_tokens(each, tokens, reservation))
        reservation.tokens = tokens
        for each in reservation.held:
            if (bucket := each.holder.tokens) is not None:
                bucket.level -= tokens

    def learn(self, name: str, kind: LimitKind, level: float) -> None:
        """Set the level of a rate's bucket to the amount that the fleet has left for this edge."""
        holder, now_s = self._holders.get(name), self._clock.monotonic_s()
        bucket = None if holder is None else holder.requests if kind is LimitKind.REQUESTS else holder.tokens
        if bucket is not None:
            bucket.level, bucket.moment_s = min(float(bucket.limit), level), now_s

    def headers(self, reservation: Reservation) -> dict[str, str]:
        """Return the `x-ratelimit-…` headers of the buckets nearest to empty, in OpenAI's and Predibase's form."""
        return _headers(reservation.held)

    def _count(self, reservation: Reservation, limits: Mapping[str, Rates]) -> None:
        """Count a request against holders that it has not been counted against, or against none of them."""
        now_s = self._clock.monotonic_s()
        if len(self._holders) > MAX_IDLE:
            self._forget_idle(now_s)
        added = [
            _Held(name, self._holders.setdefault(name, _Holder()), own, reservation.streams)
            for name, own in limits.items()
        ]
        for each in added:
            holder, own = each.holder, each.limits
            holder.requests = _filled(holder.requests, own.requests_per_minute, now_s)
            holder.tokens = _filled(holder.tokens, own.tokens_per_minute, now_s)
        _require(added, [*reservation.held, *added], lambda each: _require_request(each, reservation))
        reservation.held += added
        for each in added:
            each.holder.streams += each.streams
            if each.holder.requests is not None:
                each.holder.requests.level -= 1

    def _forget_idle(self, now_s: float) -> None:
        for name, holder in list(self._holders.items()):
            buckets = [bucket for bucket in (holder.requests, holder.tokens) if bucket is not None]
            for bucket in buckets:
                bucket.fill(now_s, bucket.limit)
            if not holder.streams and all(bucket.level >= bucket.limit for bucket in buckets):
                del self._holders[name]


def _headers(held: Sequence[_Held]) -> dict[str, str]:
    requests = [each.holder.requests for each in held if each.holder.requests is not None]
    tokens = [each.holder.tokens for each in held if each.holder.tokens is not None]
    headers: dict[str, str] = {}
    for kind, buckets in (("requests", requests), ("tokens", tokens)):
        if buckets:
            tightest = _tightest(buckets)
            headers[f"x-ratelimit-limit-{kind}"] = str(tightest.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(tightest.level)))
            headers[f"x-ratelimit-reset-{kind}"] = duration(tightest.reset_s)
    if every := [*requests, *tokens]:
        tightest = _tightest(every)
        headers["x-ratelimit-limit"] = str(tightest.limit)
        headers["x-ratelimit-remaining"] = str(max(0, int(tightest.level)))
        headers["x-ratelimit-reset"] = str(math.ceil(tightest.reset_s))
    return headers


def duration(seconds: float) -> str:
    """Return a number of seconds in OpenAI's form of a duration: `850ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(1000 * seconds)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _filled(bucket: Bucket | None, limit: int | None, now_s: float) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, float(limit), now_s)
    bucket.fill(now_s, limit)
    return bucket


def _level(amount: int, limit: int, reservation: Reservation) -> int:
    """Return the level that a bucket needs for `amount`; a line of a batch leaves half of the bucket, if that fits."""
    return max(amount, min(limit, amount + limit // 2)) if reservation.is_batch else amount


def _require(asked: Sequence[_Held], shown: Sequence[_Held], require: Callable[[_Held], None]) -> None:
    """Apply `require` to the holders `asked`; a refusal has the `x-ratelimit-…` headers of the holders `shown`."""
    try:
        for each in asked:
            require(each)
    except LimitExceeded as error:
        error.headers = _headers(shown)
        raise


def refusal(kind: LimitKind, name: str, limit: int, *, wait_s: float = 1.0) -> LimitExceeded:
    """Return the refusal of a request at a holder's limit, which at most a minute lifts."""
    wait_s = min(wait_s, MINUTE_S)
    if kind is LimitKind.STREAMS:
        return StreamLimitExceeded(f"Rate limit exceeded: {limit} sequences at one time ({name})")
    if kind is LimitKind.REQUESTS:
        return RequestRateExceeded(f"Rate limit exceeded: {limit} requests per minute ({name})", wait_s=wait_s)
    return TokenRateExceeded(f"Rate limit exceeded: {limit} tokens per minute ({name})", wait_s=wait_s)


def _require_request(each: _Held, reservation: Reservation) -> None:
    name, requests, most, streams = each.name, each.holder.requests, each.limits.concurrent_streams, each.streams
    if most is not None and streams > most:
        raise StreamLimitExceeded(
            f"Rate limit exceeded: {most} sequences at one time ({name}), and this request has {streams}: "
            "ask for fewer at once",
            wait_s=None,
        )
    if most is not None and reservation.is_batch:
        most = max(streams, most // 2)
    if most is not None and streams and each.holder.streams + streams > most:
        raise refusal(LimitKind.STREAMS, name, most)
    if requests is not None and (wait_s := requests.wait_s(_level(1, requests.limit, reservation))) > 0:
        raise refusal(LimitKind.REQUESTS, name, requests.limit, wait_s=wait_s)


def _require_tokens(each: _Held, tokens: int, reservation: Reservation) -> None:
    name, bucket = each.name, each.holder.tokens
    if bucket is None:
        return
    if tokens > bucket.limit:
        raise TokenRateExceeded(
            f"Rate limit exceeded: {bucket.limit} tokens per minute ({name}), and this request may use {tokens}, "
            "prompt and budget together: ask for fewer",
            wait_s=None,
        )
    if (wait_s := bucket.wait_s(_level(tokens, bucket.limit, reservation))) > 0:
        raise refusal(LimitKind.TOKENS, name, bucket.limit, wait_s=wait_s)


def _tightest(buckets: Sequence[Bucket]) -> Bucket:
    return min(buckets, key=lambda bucket: bucket.level / bucket.limit if bucket.limit else 0.0)
