"""The load of a replica, from its requests and the engine's numbers."""

from dataclasses import replace

import pytest

from manylora.adapter_state import LOAD_BUCKETS_S, LoadTimes
from manylora.clock import ManualClock
from manylora.engine.events import EngineStats
from manylora.fleet.host.load import FIRST_TOKENS_PER_S, SHARE, ReplicaLoad
from tests.server.engine_client.test_liveness import stats
from tests.server.fake_engine import NOTHING_STORED


def test_waiting_prompts_and_running_rows_are_the_backlog_until_they_end() -> None:
    load = ReplicaLoad(ManualClock())
    load.begin(1, 100)
    load.begin(2, 50)
    assert (load.in_flight, load.backlog_tokens) == (2, 150)
    load.start(1)
    load.start(1)  # a later token
    assert (load.in_flight, load.backlog_tokens) == (2, 51)
    load.end(2)
    load.end(1)
    load.end(1)
    assert (load.in_flight, load.backlog_tokens) == (0, 0)
    load.begin(3, 7)
    load.forget()
    assert (load.in_flight, load.backlog_tokens) == (0, 0)


def test_the_speed_is_that_of_prompts_while_they_wait() -> None:
    clock = ManualClock()
    load = ReplicaLoad(clock)
    load.begin(1, 1000)
    clock.advance(2.0)
    load.start(1)
    once = FIRST_TOKENS_PER_S + SHARE * (500.0 - FIRST_TOKENS_PER_S)
    assert load.tokens_per_s == pytest.approx(once)
    clock.advance(3600.0)  # a running row is no measurement, nor is an idle hour
    load.end(1)
    load.begin(2, 1000)
    clock.advance(2.0)
    load.start(2)
    assert load.tokens_per_s == pytest.approx(once + SHARE * (500.0 - once))


def test_the_share_of_loads_is_that_between_two_statistics() -> None:
    clock = ManualClock()
    load = ReplicaLoad(clock)

    def note(total_s: float) -> None:
        counts = (1,) * (len(LOAD_BUCKETS_S) + 1)
        times = LoadTimes(source="local", tier="disk", counts=counts, total_s=total_s)
        load.note(numbers(times))

    note(5.0)
    assert load.load_share == 0.0
    clock.advance(10.0)
    note(6.0)
    assert load.load_share == pytest.approx(0.1)
    load.forget()  # another engine counts from zero
    note(0.0)
    assert load.load_share == pytest.approx(0.1)


def numbers(times: LoadTimes) -> EngineStats:
    return replace(stats(), adapters=replace(NOTHING_STORED, load_times=(times,)))
