"""Limits of tenants and keys: requests a minute, tokens a minute, and sequences at one time.

The limiter counts a request before any work for it. Once the prompt is known, the request reserves its largest number
of tokens: the prompt and the whole budget. At its end the limiter returns the unused part.
A limit a minute is a token bucket: it holds at most the allowance of one minute and fills evenly.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from manylora.clock import Clock
from manylora.errors import LimitExceeded, RequestRateExceeded, StreamLimitExceeded, TokenRateExceeded
from manylora.tenancy import Limits

MINUTE_S = 60.0
MAX_IDLE = 10_000
"""Holders (tenants and keys) above which the limiter forgets those without any use; this bounds its memory."""


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
    """The current use of one tenant or of one key."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    streams: int = 0


@dataclass(slots=True)
class Reservation:
    """The share of the limits that one request holds; `settle` returns the unused part once.

    is_batch  a line of a batch leaves half of each limit to the holder's interactive requests
    """

    holders: list[tuple[str, _Holder, Limits]] = field(default_factory=list)
    streams: int = 0
    tokens: int = 0
    is_settled: bool = False
    is_batch: bool = False

    def settle(self, used_tokens: int) -> None:
        """End the request: charge `used_tokens` to the buckets and return the rest of the reservation."""
        if self.is_settled:
            return
        self.is_settled = True
        for _, holder, _ in self.holders:
            holder.streams -= self.streams
            if holder.tokens is not None:
                returned = self.tokens - min(used_tokens, self.tokens)
                holder.tokens.level = min(float(holder.tokens.limit), holder.tokens.level + returned)


class Limiter:
    """The buckets of all tenants and keys. It belongs to one event loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holders: dict[str, _Holder] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def enter(self, limits: Mapping[str, Limits], *, streams: int, is_batch: bool = False) -> Reservation:
        """Count one request against every holder, or against none of them; call it before any work for the request.

        Args:    limits   the limits of each holder: of the tenant, and of its key
                 streams  number of the request's sequences; 0 for a request that generates nothing
                 is_batch  whether it is a line of a batch
        Raises:  `RequestRateExceeded`, `StreamLimitExceeded`, with the seconds to wait
        """
        now_s = self._clock.monotonic_s()
        if len(self._holders) > MAX_IDLE:
            self._forget_idle(now_s)
        reservation = Reservation(
            [(name, self._holders.setdefault(name, _Holder()), own) for name, own in limits.items()],
            streams,
            is_batch=is_batch,
        )
        self._fill(reservation, now_s)
        self._require(reservation, lambda name, holder, own: _require_request(name, holder, own, reservation))
        for _, holder, _ in reservation.holders:
            holder.streams += streams
            if holder.requests is not None:
                holder.requests.level -= 1
        return reservation

    def streams_left(self, limits: Mapping[str, Limits], wanted: int, *, is_batch: bool = False) -> int:
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
        for _, holder, _ in reservation.holders:
            if holder.tokens is not None:  # its limit is that of the newest request, which may be another one
                holder.tokens.fill(now_s, holder.tokens.limit)
        self._require(reservation, lambda name, holder, own: _require_tokens(name, holder, tokens, reservation))
        reservation.tokens = tokens
        for _, holder, _ in reservation.holders:
            if holder.tokens is not None:
                holder.tokens.level -= tokens

    def headers(self, reservation: Reservation) -> dict[str, str]:
        """Return the `x-ratelimit-…` headers of the bucket nearest to empty, in OpenAI's and Predibase's form."""
        requests = [holder.requests for _, holder, _ in reservation.holders if holder.requests is not None]
        tokens = [holder.tokens for _, holder, _ in reservation.holders if holder.tokens is not None]
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

    def _fill(self, reservation: Reservation, now_s: float) -> None:
        for _, holder, limits in reservation.holders:
            holder.requests = _filled(holder.requests, limits.requests_per_minute, now_s)
            holder.tokens = _filled(holder.tokens, limits.tokens_per_minute, now_s)

    def _require(self, reservation: Reservation, require: Callable[[str, _Holder, Limits], None]) -> None:
        """Apply `require` to every holder; add the `x-ratelimit-…` headers to the error of a refusal."""
        try:
            for name, holder, limits in reservation.holders:
                require(name, holder, limits)
        except LimitExceeded as error:
            error.headers = self.headers(reservation)
            raise

    def _forget_idle(self, now_s: float) -> None:
        for name, holder in list(self._holders.items()):
            buckets = [bucket for bucket in (holder.requests, holder.tokens) if bucket is not None]
            for bucket in buckets:
                bucket.fill(now_s, bucket.limit)
            if not holder.streams and all(bucket.level >= bucket.limit for bucket in buckets):
                del self._holders[name]


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


def _require_request(name: str, holder: _Holder, limits: Limits, reservation: Reservation) -> None:
    most, streams = limits.concurrent_streams, reservation.streams
    if most is not None and streams > most:
        raise StreamLimitExceeded(
            f"Rate limit exceeded: {most} sequences at one time ({name}), and this request has {streams}: "
            "ask for fewer at once",
            wait_s=None,
        )
    if most is not None and reservation.is_batch:
        most = max(streams, most // 2)
    if most is not None and streams and holder.streams + streams > most:
        raise StreamLimitExceeded(f"Rate limit exceeded: {most} sequences at one time ({name})")
    if (
        holder.requests is not None
        and (wait_s := holder.requests.wait_s(_level(1, holder.requests.limit, reservation))) > 0
    ):
        raise RequestRateExceeded(
            f"Rate limit exceeded: {holder.requests.limit} requests per minute ({name})", wait_s=min(wait_s, MINUTE_S)
        )


def _require_tokens(name: str, holder: _Holder, tokens: int, reservation: Reservation) -> None:
    if holder.tokens is None:
        return
    if tokens > holder.tokens.limit:
        raise TokenRateExceeded(
            f"Rate limit exceeded: {holder.tokens.limit} tokens per minute ({name}), and this request may use "
            f"{tokens}, prompt and budget together: ask for fewer",
            wait_s=None,
        )
    if (wait_s := holder.tokens.wait_s(_level(tokens, holder.tokens.limit, reservation))) > 0:
        raise TokenRateExceeded(
            f"Rate limit exceeded: {holder.tokens.limit} tokens per minute ({name})", wait_s=min(wait_s, MINUTE_S)
        )


def _tightest(buckets: Sequence[Bucket]) -> Bucket:
    return min(buckets, key=lambda bucket: bucket.level / bucket.limit if bucket.limit else 0.0)
