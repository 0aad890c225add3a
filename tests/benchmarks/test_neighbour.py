"""The neighbour of a measured engine: pinned on one processor, and gone at the end."""

import os

from benchmarks.faults.neighbour import spinning


def test_a_neighbour_stays_on_its_processor_and_is_gone_at_the_end() -> None:
    processor = max(os.sched_getaffinity(0))
    with spinning(processor) as neighbour:
        assert os.sched_getaffinity(neighbour.pid) == {processor}
        assert neighbour.poll() is None
    assert neighbour.poll() is not None
