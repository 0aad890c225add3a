"""What counts as standing still: the engine's loop and the adapter loader are judged apart."""

from dataclasses import replace
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.engine.events import EngineStats
from manylora.server.engine_client.liveness import ProgressMonitor
from tests.server.fake_engine import NOTHING_STORED

NOTHING: dict[str, Any] = {**dict.fromkeys(EngineStats.__dataclass_fields__, 0), "adapters": NOTHING_STORED}


def stats(*, loads: int = 0, failures: int = 0, answers: int = 0, **gauges: int) -> EngineStats:
    store = replace(NOTHING_STORED, loads=loads, failures=failures, answers=answers)
    return EngineStats(**{**NOTHING, **gauges, "adapters": store})


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def monitor(clock: ManualClock) -> ProgressMonitor:
    return ProgressMonitor(clock)


def watch(monitor: ProgressMonitor, clock: ManualClock, *told: EngineStats) -> float:
    """Seconds the engine stands still after these numbers came, one a second, while requests are in flight."""
    tell(monitor, clock, *told)
    return monitor.stalled_s(in_flight=1)


def tell(monitor: ProgressMonitor, clock: ManualClock, *told: EngineStats) -> None:
    for each in told:
        clock.advance(1.0)
        monitor.note(each)


def test_a_loader_that_ends_nothing_stands_still_whatever_others_generate(
    monitor: ProgressMonitor, clock: ManualClock
) -> None:
    monitor.note(stats())
    for step in range(1, 41):
        clock.advance(1.0)
        monitor.moved_s = clock.monotonic_s()
        monitor.note(stats(running=3, loading=1, steps=100 * step))
    assert monitor.loader_stalled_s(in_flight=4) == 40.0
    assert monitor.stalled_s(in_flight=4) == 0.0


def test_a_loader_that_answers_makes_progress(monitor: ProgressMonitor, clock: ManualClock) -> None:
    tell(monitor, clock, *(stats(loading=2, answers=count) for count in (0, 0, 1)))
    assert monitor.loader_stalled_s(in_flight=1) == 0.0


def test_names_that_fail_without_the_loader_are_no_progress_of_it(monitor: ProgressMonitor, clock: ManualClock) -> None:
    tell(monitor, clock, *(stats(loading=2, failures=count) for count in range(40)))
    assert monitor.loader_stalled_s(in_flight=2) == 39.0


def test_a_loader_for_which_nobody_waits_does_not_stand_still(monitor: ProgressMonitor, clock: ManualClock) -> None:
    tell(monitor, clock, *(stats(running=1, steps=step) for step in range(40)))
    assert monitor.loader_stalled_s(in_flight=1) == 0.0


def test_an_engine_without_new_steps_stands_still_whatever_is_loaded(
    monitor: ProgressMonitor, clock: ManualClock
) -> None:
    assert watch(monitor, clock, *(stats(running=1, answers=load) for load in range(40))) == 39.0


def test_a_queue_that_nothing_lets_in_stands_still(monitor: ProgressMonitor, clock: ManualClock) -> None:
    assert watch(monitor, clock, *(stats(waiting=1, steps=step) for step in range(40))) == 39.0


def test_an_engine_that_says_nothing_stands_still(monitor: ProgressMonitor, clock: ManualClock) -> None:
    monitor.note(stats(loading=1))
    clock.advance(31.0)
    assert monitor.stalled_s(in_flight=1) == 31.0


def test_without_work_nothing_stands_still_and_new_work_starts_afresh(
    monitor: ProgressMonitor, clock: ManualClock
) -> None:
    monitor.note(stats(loading=1))
    clock.advance(31.0)
    assert monitor.stalled_s(in_flight=0) == 0.0
    clock.advance(31.0)
    monitor.begin()
    assert monitor.stalled_s(in_flight=1) == monitor.loader_stalled_s(in_flight=1) == 0.0
