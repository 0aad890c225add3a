"""Samples of what the processes of a server hold, for each of its parts: control plane, edge, engine."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.soak.slope import Series, Slope, slope_of
from manylora.bench.faults.chaos_processes import Processes
from manylora.bench.processes import Held, held, memory_bytes, open_files, processes_below
from manylora.clock import SystemClock

PARTS = ("control", "edge", "engine")
SETTLING = 0.3
"""Part of a process's samples, from its first one on, that a slope leaves out: its caches fill."""
LEAST_SPAN_S = 150.0
"""Seconds of samples of one process that make a series: a younger process still fills its caches."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The holdings of one part at a moment.

    process    the id of its first process
    own_bytes  memory of that process alone: the others of a part come and go with uploads and reads
    """

    at_s: float
    process: int
    own_bytes: int
    held: Held


@dataclass
class Samples:
    """All samples of a run, by part; times count from its begin."""

    processes: Processes
    begun_s: float = field(default_factory=lambda: SystemClock().monotonic_s())
    of: dict[str, list[Sample]] = field(default_factory=lambda: {part: [] for part in PARTS})
    kills_s: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return SystemClock().monotonic_s() - self.begun_s

    async def keep(self, every_s: float) -> None:
        """Take a sample of each part every `every_s` seconds until cancelled."""
        while True:
            await asyncio.to_thread(self.take)
            await asyncio.sleep(every_s)

    def take(self) -> None:
        for part in PARTS:
            if own := self.ids(part):
                self.of[part].append(Sample(self.now_s(), own[0], memory_bytes(own[:1]), held(own)))

    def ids(self, part: str) -> list[int]:
        """Return the ids of a part's processes, its first process before the others; empty while it is not there."""
        control, edge = self.processes.control, self.processes.edge
        assert control is not None
        assert edge is not None
        if part == "control":
            return list(processes_below(control.pid))
        engine = self.processes.engine()
        own = [] if engine is None else list(processes_below(engine))
        return own if part == "engine" else [each for each in processes_below(edge.pid) if each not in own]

    def now(self, part: str) -> Held:
        return held(self.ids(part))

    def files(self, part: str) -> Counter[str]:
        return open_files(self.ids(part))

    def memory_series(self, part: str) -> list[Series]:
        """Return bytes of memory over time, a series for each process of the part, without its first minutes."""
        found: dict[int, list[tuple[float, float]]] = {}
        for sample in self.of[part]:
            found.setdefault(sample.process, []).append((sample.at_s, float(sample.own_bytes)))
        settled = [series[int(SETTLING * len(series)) :] for series in found.values()]
        return [series for series in settled if series[-1][0] - series[0][0] >= LEAST_SPAN_S]

    def slope(self, part: str) -> Slope | None:
        """Return the trend of a part's memory in bytes a second; None if no process of it lived long enough."""
        with suppress(ValueError):
            return slope_of(self.memory_series(part))
        return None


def grown(before: Held, after: Held) -> dict[str, int]:
    """Return the counts that are larger than before: of processes, threads, files and sockets."""
    names: Sequence[str] = ("processes", "threads", "files", "sockets")
    more = {name: int(getattr(after, name)) - int(getattr(before, name)) for name in names}
    return {name: number for name, number in more.items() if number > 0}
