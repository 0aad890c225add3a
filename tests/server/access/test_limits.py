"""Buckets of requests and tokens: never more than a minute's allowance, and given back exactly."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.clock import ManualClock
from manylora.errors import LimitExceeded, RequestRateExceeded, StreamLimitExceeded, TokenRateExceeded
from manylora.http.dialects import headers_of
from manylora.server.access import limits as module
from manylora.server.access.limits import Limiter, Reservation, duration
from manylora.tenancy import BaseLimits, Limits

ACME = "tenant acme"


def take(limiter: Limiter, limits: Mapping[str, Limits], tokens: int, streams: int = 1) -> Reservation:
    """A request comes, and its prompt is read."""
    reservation = limiter.enter(limits, streams=streams)
    try:
        limiter.reserve(reservation, tokens)
    except LimitExceeded:
        reservation.settle(0)
        raise
    return reservation


def test_requests_a_minute_are_held_and_come_back_evenly() -> None:
    clock = ManualClock()
    limiter = Limiter(clock)
    held = {ACME: Limits(requests_per_minute=3)}
    for _ in range(3):
        take(limiter, held, 1).settle(1)
    with pytest.raises(RequestRateExceeded) as caught:
        take(limiter, held, 1)
    assert caught.value.retry_after_s == pytest.approx(20)
    clock.advance(20)
    take(limiter, held, 1)
    with pytest.raises(RequestRateExceeded):
        take(limiter, held, 1)


def test_tokens_are_reserved_at_their_worst_and_given_back() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(tokens_per_minute=100)}
    first = take(limiter, held, 80)
    with pytest.raises(TokenRateExceeded, match="100 tokens per minute"):
        take(limiter, held, 30)
    first.settle(10)
    first.settle(0)
    take(limiter, held, 90)
    with pytest.raises(TokenRateExceeded):
        take(limiter, held, 1)


def test_what_can_never_fit_is_told_so() -> None:
    with pytest.raises(TokenRateExceeded, match="may use 101") as tokens:
        take(Limiter(ManualClock()), {ACME: Limits(tokens_per_minute=100)}, 101)
    with pytest.raises(StreamLimitExceeded, match="this request has 3") as streams:
        take(Limiter(ManualClock()), {ACME: Limits(concurrent_streams=2)}, 1, streams=3)
    for caught in (tokens, streams):
        assert "retry-after" not in headers_of(caught.value)
        assert headers_of(caught.value)["x-should-retry"] == "false"


def test_who_is_refused_is_shown_the_buckets() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(requests_per_minute=2, tokens_per_minute=100)}
    for _ in range(2):
        take(limiter, held, 40)
    with pytest.raises(RequestRateExceeded) as caught:
        take(limiter, held, 1)
    told = headers_of(caught.value)
    assert (told["x-ratelimit-limit-requests"], told["x-ratelimit-remaining-requests"]) == ("2", "0")
    assert (told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]) == ("100", "20")
    assert (told["retry-after"], told["x-ratelimit-reset-requests"]) == ("30", "1m0s")


def test_every_sequence_is_a_stream() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(concurrent_streams=4)}
    first = take(limiter, held, 1, streams=3)
    with pytest.raises(StreamLimitExceeded, match="4 sequences at one time"):
        take(limiter, held, 1, streams=2)
    take(limiter, held, 1, streams=0)  # it generates nothing
    take(limiter, held, 1, streams=1)
    first.settle(0)
    take(limiter, held, 1, streams=3)


def test_streams_at_one_time_are_held() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(concurrent_streams=2)}
    first, _ = take(limiter, held, 1), take(limiter, held, 1)
    with pytest.raises(StreamLimitExceeded):
        take(limiter, held, 1)
    first.settle(1)
    take(limiter, held, 1)


def test_a_refusal_takes_from_nobody() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(requests_per_minute=10), "key k": Limits(requests_per_minute=1)}
    take(limiter, held, 1)
    for _ in range(5):
        with pytest.raises(RequestRateExceeded, match="key k"):
            take(limiter, held, 1)
    for _ in range(9):
        take(limiter, {ACME: held[ACME]}, 1)


def test_headers_tell_of_the_bucket_nearest_to_empty() -> None:
    clock = ManualClock()
    limiter = Limiter(clock)
    taken = take(
        limiter,
        {ACME: Limits(requests_per_minute=60, tokens_per_minute=1000), "key k": Limits(tokens_per_minute=100)},
        40,
    )
    assert limiter.headers(taken) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "24s",
        "x-ratelimit-limit": "100",
        "x-ratelimit-remaining": "60",
        "x-ratelimit-reset": "24",
    }


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0ms"), (0.85, "850ms"), (1, "1s"), (59.2, "1m0s"), (360, "6m0s")])
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_changed_limit_holds_at_once() -> None:
    limiter = Limiter(ManualClock())
    take(limiter, {ACME: Limits(requests_per_minute=100)}, 1)
    take(limiter, {ACME: Limits(requests_per_minute=1)}, 1)
    with pytest.raises(RequestRateExceeded):
        take(limiter, {ACME: Limits(requests_per_minute=1)}, 1)
    with pytest.raises(RequestRateExceeded):
        take(limiter, {ACME: Limits(requests_per_minute=0)}, 1)


def test_an_older_request_brings_no_older_limit_back() -> None:
    clock = ManualClock()
    limiter = Limiter(clock)
    older = limiter.enter({ACME: Limits(tokens_per_minute=100)}, streams=1)
    newer = {ACME: Limits(tokens_per_minute=10_000)}
    take(limiter, newer, 1)
    clock.advance(60)
    limiter.reserve(older, 50)
    take(limiter, newer, 5_000)
    unlimited = limiter.enter({ACME: Limits()}, streams=1)
    limiter.reserve(unlimited, 10**6)


def test_idle_holders_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_IDLE", 10)
    clock = ManualClock()
    limiter = Limiter(clock)
    busy = take(limiter, {"busy": Limits(concurrent_streams=1)}, 1)
    for number in range(100):
        take(limiter, {f"tenant {number}": Limits(requests_per_minute=1)}, 1).settle(1)
        clock.advance(61)
    assert len(limiter) <= 12
    with pytest.raises(StreamLimitExceeded):
        take(limiter, {"busy": Limits(concurrent_streams=1)}, 1)
    busy.settle(1)


CALLS = st.lists(st.tuples(st.floats(0, 30), st.integers(1, 60), st.integers(0, 60), st.booleans()), max_size=60)


@given(CALLS)
def test_no_window_holds_more_than_a_burst_and_its_share(calls: list[tuple[float, int, int, bool]]) -> None:
    """In T seconds at most limit × (1 + T / 60) tokens are used, and nothing is lost on the way.

    The windows begin where nothing is under way: what was set aside before one, and not used, comes back in it.
    """
    clock = ManualClock()
    limiter = Limiter(clock)
    held = {ACME: Limits(tokens_per_minute=60, requests_per_minute=30)}
    used: list[tuple[float, int, bool]] = []
    open_ones: list[tuple[Reservation, int]] = []
    for wait_s, reserve, actual, ends_now in calls:
        clock.advance(wait_s)
        is_idle = not open_ones
        try:
            open_ones.append((take(limiter, held, reserve), min(actual, reserve)))
        except LimitExceeded:
            pass
        else:
            used.append((clock.monotonic_s(), min(actual, reserve), is_idle))
        while open_ones and ends_now:
            reservation, tokens = open_ones.pop()
            reservation.settle(tokens)
    for start, (begin_s, _, is_idle) in enumerate(used):
        total = 0
        for moment_s, tokens, _ in used[start:] if is_idle else ():
            total += tokens
            assert total <= 60 * (1 + (moment_s - begin_s) / 60) + 1e-6
    for reservation, tokens in open_ones:
        reservation.settle(tokens)
    clock.advance(120)
    take(limiter, held, 60).settle(0)


def test_a_line_of_a_batch_leaves_half_of_each_limit_to_interactive_requests() -> None:
    limiter = Limiter(ManualClock())
    held = {ACME: Limits(requests_per_minute=6, tokens_per_minute=100, concurrent_streams=5)}

    def enter(tokens: int) -> Reservation:
        reservation = limiter.enter(held, streams=1, is_batch=True)
        try:
            limiter.reserve(reservation, tokens)
        except LimitExceeded:
            reservation.settle(0)
            raise
        return reservation

    enter(30)
    with pytest.raises(TokenRateExceeded) as tokens:
        enter(30)
    assert tokens.value.retry_after_s == pytest.approx(60 * (80 - 70) / 100)
    enter(20)
    with pytest.raises(StreamLimitExceeded):
        enter(1)
    for _ in range(3):
        take(limiter, held, 10)


def test_a_line_that_needs_more_than_half_of_a_limit_waits_for_all_of_it() -> None:
    clock = ManualClock()
    limiter = Limiter(clock)
    held = {ACME: Limits(requests_per_minute=1, tokens_per_minute=100, concurrent_streams=1)}
    reservation = limiter.enter(held, streams=1, is_batch=True)
    limiter.reserve(reservation, 100)
    reservation.settle(100)
    clock.advance(59)
    with pytest.raises(RequestRateExceeded):
        limiter.enter(held, streams=1, is_batch=True)
    clock.advance(1)
    limiter.reserve(limiter.enter(held, streams=1, is_batch=True), 100)


def of_base(**numbers: int) -> dict[str, BaseLimits]:
    return {"tenant acme, base small": BaseLimits(base="small", **numbers)}


def test_a_refusal_of_the_base_stays_counted_against_the_limits_of_all_bases() -> None:
    limiter, held = Limiter(ManualClock()), {ACME: Limits(requests_per_minute=5, concurrent_streams=2)}
    for _ in range(2):
        reservation = limiter.enter(held, streams=1)
        limiter.narrow(reservation, of_base(requests_per_minute=2))
        reservation.settle(0)
    for _ in range(3):
        reservation = limiter.enter(held, streams=1)
        with pytest.raises(RequestRateExceeded, match=r"2 requests per minute \(tenant acme, base small\)") as caught:
            limiter.narrow(reservation, of_base(requests_per_minute=2))
        assert headers_of(caught.value)["x-ratelimit-remaining-requests"] == "0"
        reservation.settle(0)
    with pytest.raises(RequestRateExceeded, match=r"5 requests per minute \(tenant acme\)"):
        limiter.enter(held, streams=1)


def test_a_base_has_tokens_and_sequences_of_its_own() -> None:
    limiter, held = Limiter(ManualClock()), {ACME: Limits(tokens_per_minute=100, concurrent_streams=4)}
    own = of_base(tokens_per_minute=50, concurrent_streams=2)
    reservation = limiter.enter(held, streams=3)
    limiter.narrow(reservation, own)
    assert reservation.streams == 2  # a wave of the three
    limiter.reserve(reservation, 40)
    other = limiter.enter(held, streams=1)
    with pytest.raises(StreamLimitExceeded, match="2 sequences at one time"):
        limiter.narrow(other, own)
    other.settle(0)
    reservation.settle(15)
    for _ in range(2):
        again = limiter.enter(held, streams=2)
        limiter.narrow(again, own)
        with pytest.raises(TokenRateExceeded, match=r"50 tokens per minute \(tenant acme, base small\)"):
            limiter.reserve(again, 36)
        again.settle(0)
    elsewhere = limiter.enter(held, streams=4)
    limiter.reserve(elsewhere, 85)  # all that the tenant has left


def test_a_line_of_a_batch_leaves_half_of_a_bases_limit() -> None:
    limiter, own = Limiter(ManualClock()), of_base(concurrent_streams=2, requests_per_minute=4)
    first = limiter.enter({}, streams=1, is_batch=True)
    limiter.narrow(first, own)
    second = limiter.enter({}, streams=1, is_batch=True)
    with pytest.raises(StreamLimitExceeded):
        limiter.narrow(second, own)
    limiter.narrow(limiter.enter({}, streams=1), own)
