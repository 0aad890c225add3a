"""The garbage collector and imported modules."""

import gc
from collections.abc import Iterator

import pytest

from manylora.system.collector import exempt_modules, paused


@pytest.fixture
def collections() -> Iterator[list[str]]:
    """The phases of all collections that begin or end while the test runs."""
    seen: list[str] = []

    def note(phase: str, _: object) -> None:
        seen.append(phase)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def make_garbage() -> None:
    for _ in range(10 * gc.get_threshold()[0]):
        ring: list[object] = []
        ring.append(ring)


def test_no_collection_runs_within_and_they_run_again_afterwards(collections: list[str]) -> None:
    with paused():
        make_garbage()
        assert not collections
    make_garbage()
    assert collections


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_is_exempt_is_not_tracked_by_a_collection() -> None:
    kept: list[object] = []
    exempt_modules()
    assert not any(one is kept for one in gc.get_objects())
