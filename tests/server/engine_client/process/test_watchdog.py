"""An engine process counts as stuck by its silence and its idleness, on the edge's own clock."""

import pytest

from manylora.clock import ManualClock
from manylora.server.engine_client.process import watchdog
from manylora.server.engine_client.process.watchdog import BUSY_FACTOR, CHECK_S, EngineWatchdog

LIMIT_S = 30.0
NO_PROCESS = -1
"""Its processor time stays 0, as that of a stopped process."""


def watched(clock: ManualClock, pid: int, seconds: float) -> EngineWatchdog:
    found = EngineWatchdog(pid, clock)
    for _ in range(int(seconds / CHECK_S)):
        clock.advance(CHECK_S)
        found.sample()
    return found


def test_an_idle_silent_process_is_stuck_after_the_limit() -> None:
    assert not watched(ManualClock(), NO_PROCESS, LIMIT_S - 1).is_stuck(LIMIT_S - 1, LIMIT_S)
    assert watched(ManualClock(), NO_PROCESS, LIMIT_S + 1).is_stuck(LIMIT_S + 1, LIMIT_S)


def test_an_engine_that_has_spoken_a_moment_ago_is_not() -> None:
    assert not watched(ManualClock(), NO_PROCESS, LIMIT_S + 1).is_stuck(1.0, LIMIT_S)


def test_an_edge_that_stood_still_itself_blames_no_engine() -> None:
    """The engine waited for its acknowledgement meanwhile."""
    clock = ManualClock()
    idle = watched(clock, NO_PROCESS, 2)
    clock.advance(2 * LIMIT_S)
    idle.sample()
    assert not idle.is_stuck(2 * LIMIT_S, LIMIT_S)


def test_a_busy_process_gets_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    monkeypatch.setattr(watchdog, "processor_s", lambda pid: clock.monotonic_s())
    busy = watched(clock, NO_PROCESS, LIMIT_S + 1)
    assert not busy.is_stuck(LIMIT_S + 1, LIMIT_S)
    assert busy.is_stuck(BUSY_FACTOR * LIMIT_S, LIMIT_S)
