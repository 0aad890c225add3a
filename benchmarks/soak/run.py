"""A soak: all kinds of traffic for minutes with kills of the engine, and the comparison with the state before.

1. A control plane, a server and its engine start; three tenants get keys.
2. Traffic for a part of the time, then silence: this state is the measure.
3. Traffic for the rest, with a kill of the engine in each period, then silence.
4. Nothing may be left: no block, row, pin, request, descriptor, thread or connection more than in 2.
5. The processes stop in order. Ledger, journals and clients must agree, and no row or file of a dead edge, of a
   deleted version or of an unfinished upload may be left.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.soak.left import left_in_database, left_in_folders
from benchmarks.soak.samples import PARTS, Samples, grown
from benchmarks.soak.slope import Slope
from benchmarks.soak.traffic import Tenant, Traffic
from manylora.bench.faults.chaos import answers, make_tenants, settle, until
from manylora.bench.faults.chaos_processes import Processes
from manylora.bench.faults.chaos_verdict import Verdict, verdict_of
from manylora.bench.load import drawn, models
from manylora.bench.processes import Held
from manylora.bench.random_adapters import write_adapters
from manylora.clock import SystemClock
from manylora.models.spec import read_spec

TENANTS = 3
ZIPF = 1.0
RANKS = (4, 8)
UPLOADS = 6
"""Number of different adapters that tenants upload."""
POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's default pool. It starts one where none is idle and ends none, so that its filling is no leak."""
SILENCE_WAIT_S = 60.0
MOST_GROWN = 0.25
"""Largest growth of a part's memory from silence to silence, as a share: caches fill, and slopes judge the rest."""
BURST = 32
"""Reads at once before each silence, so that every pool of connections has its full size in both."""
IDLE_GAUGES = (
    *("manylora_in_flight", "manylora_loading", "manylora_kv_blocks_used", "manylora_grammars_queued"),
    *("lorax_queue_length", "lorax_batch_current_size", "manylora_adapters_pinned"),
)
"""Gauges that are 0 in silence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The extent of a run. warm_up_s: traffic before the state that is the measure; a part of `seconds`."""

    seconds: float
    warm_up_s: float
    kill_every_s: float
    adapters: int = 1000
    streams: int = 12
    pause_s: float = 1.0
    sample_every_s: float = 5.0
    seed: int = 1


@dataclass
class Soak:
    """The findings of a run. faults: one line for each thing that is not as it must be; empty: the run holds."""

    plan: Plan
    faults: list[str] = field(default_factory=list)
    slopes: dict[str, Slope] = field(default_factory=dict)
    before: dict[str, Held] = field(default_factory=dict)
    after: dict[str, Held] = field(default_factory=dict)
    kills: int = 0
    verdict: Verdict | None = None
    traffic: dict[str, Any] = field(default_factory=dict)  # counts, some by verb
    samples: dict[str, list[tuple[float, int, int, int]]] = field(default_factory=dict)
    """(seconds, bytes of memory of the first process, descriptors, threads) by part."""
    kills_s: list[float] = field(default_factory=list)


def run_soak(
    folder: Path,
    base: Path,
    plan: Plan,
    *,
    settings: tuple[str, ...] = (),
    report: Callable[[str], None] = lambda line: None,
) -> Soak:
    """Run it in `folder` on the base model of `base`. Raises `RuntimeError` if a process does not come up."""
    spec = read_spec(base)
    names = write_adapters(folder / "adapters", spec, plan.adapters, RANKS, base.name)
    uploads = write_adapters(folder / "uploads", spec, UPLOADS, RANKS, base.name, first_seed=plan.adapters)
    report(f"{len(names)} adapters written")
    own = (
        f"adapters.roots={folder / 'adapters'}",
        f"adapters.registry_dir={folder / 'control' / 'uploads'}",
        "adapters.hub_endpoint=",
        *settings,
    )
    processes = Processes(folder, str(base), own, control_settings=(f"model.base={base}",))
    targets = drawn(models(names), zipf=ZIPF, seed=plan.seed)
    folders = [folder / "uploads" / name for name in uploads]

    def traffic(admin: str, keys: list[str]) -> Traffic:
        tenants = [Tenant(key) for key in keys]
        return Traffic(processes, admin, tenants, targets, folders, spec.vocab, Random(plan.seed))

    return asyncio.run(_run(processes, plan, traffic, report))


async def _run(
    processes: Processes,
    plan: Plan,
    make_traffic: Callable[[str, list[str]], Traffic],
    report: Callable[[str], None],
) -> Soak:
    found = Soak(plan)
    processes.start_control()
    try:
        admin, *keys = await make_tenants(processes, TENANTS)
        processes.start_edge()
        await until(processes, lambda: answers(processes))
        assert processes.control is not None
        assert processes.edge is not None
        first = (processes.control.pid, processes.edge.pid)
        traffic, samples = make_traffic(admin, keys), Samples(processes)
        await traffic.run(plan.warm_up_s, plan.streams, plan.pause_s)
        await _silence(traffic, found, "after the warm-up")
        found.before = {part: samples.now(part) for part in PARTS}
        files = {part: samples.files(part) for part in PARTS}
        report(f"silence after the warm-up: {_brief(found.before)}; {found.faults}")
        found.faults += await _measured(traffic, samples, plan, report)
        await _silence(traffic, found, "at the end")
        await _compare(samples, found, files)
        report(f"silence at the end: {_brief(found.after)}; {found.faults}")
        if (processes.control.pid, processes.edge.pid) != first:
            found.faults.append("the control plane or the edge ended during the run")
        await settle(processes)
    finally:
        processes.stop()
    _conclude(processes, traffic, samples, found)
    return found


async def _measured(traffic: Traffic, samples: Samples, plan: Plan, report: Callable[[str], None]) -> list[str]:
    """Run the traffic of the measured time, with samples and kills beside it; return the faults of these two."""
    beside = [
        asyncio.create_task(samples.keep(plan.sample_every_s)),
        asyncio.create_task(_kill(traffic.processes, samples, plan, report)),
    ]
    try:
        await traffic.run(plan.seconds - plan.warm_up_s, plan.streams, plan.pause_s)
    finally:
        for task in beside:
            task.cancel()
        ends = await asyncio.gather(*beside, return_exceptions=True)
    faults = [f"the sampler or the killer ended: {end!r}" for end in ends if isinstance(end, Exception)]
    if plan.kill_every_s < plan.seconds - plan.warm_up_s and not samples.kills_s:
        faults.append("no engine was killed")
    return faults


async def _kill(processes: Processes, samples: Samples, plan: Plan, report: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(plan.kill_every_s)
        await until(processes, lambda: processes.kill("engine"))
        samples.kills_s.append(samples.now_s())
        report(f"{samples.now_s():.0f} s: killed the engine, {len(samples.kills_s)}")


async def _silence(traffic: Traffic, found: Soak, when: str) -> None:
    """Wait until no request is left, and note the gauges and pins that do not become 0."""
    await until(traffic.processes, lambda: answers(traffic.processes))
    await traffic.burst(BURST)
    clock = SystemClock()
    end_s = clock.monotonic_s() + SILENCE_WAIT_S
    while True:
        pins = await traffic.unpin_all()
        gauges = await _gauges(traffic)
        left = {name: gauges[name] for name in IDLE_GAUGES if gauges[name]} | ({"pins": pins} if pins else {})
        if not left:
            return
        if clock.monotonic_s() > end_s:
            found.faults += [f"{when} {name} is {value:g}, not 0" for name, value in left.items()]
            return
        await asyncio.sleep(0.2)


async def _gauges(traffic: Traffic) -> dict[str, float]:
    """Return the values of all series by their names with labels."""
    async with traffic.client() as client:
        families = (await client.get("/metrics?format=json")).raise_for_status().json()
    return {str(each["key"]): float(each["value"]) for family in families.values() for each in family["data"]}


def _leaked(counts: dict[str, int]) -> dict[str, int]:
    """Leave out threads that a pool may have started meanwhile."""
    return {name: number for name, number in counts.items() if name != "threads" or number > POOL_THREADS}


async def _compare(samples: Samples, found: Soak, files: dict[str, Any]) -> None:
    """Wait until each part holds no more than before, and note what stays."""
    clock = SystemClock()
    end_s = clock.monotonic_s() + SILENCE_WAIT_S
    while True:
        found.after = {part: samples.now(part) for part in PARTS}
        more = {part: _leaked(grown(found.before[part], found.after[part])) for part in PARTS}
        if not any(more.values()):
            return
        if clock.monotonic_s() > end_s:
            break
        await asyncio.sleep(0.5)
    for part, counts in more.items():
        new = dict((samples.files(part) - files[part]).most_common(5)) if counts else {}
        found.faults += [f"{part} holds {number} more {name} than before; {new}" for name, number in counts.items()]


def _conclude(processes: Processes, traffic: Traffic, samples: Samples, found: Soak) -> None:
    found.kills, found.kills_s = len(samples.kills_s), samples.kills_s
    found.verdict = verdict_of(processes.folder, traffic.streams, {"engine": found.kills}, 0)
    if not found.verdict.holds:
        found.faults.append(f"the counts differ: {found.verdict}")
    found.faults += left_in_database(processes.folder) + left_in_folders(processes.folder)
    for part in PARTS:
        before, after = (each[part].memory_bytes for each in (found.before, found.after))
        if after > (1 + MOST_GROWN) * before:
            found.faults.append(f"the memory of {part} has grown from {before} to {after} bytes")
        if (slope := samples.slope(part)) is not None:
            found.slopes[part] = slope
            if not slope.is_flat:
                found.faults.append(f"the memory of {part} grows: {slope}")
    streams = traffic.streams
    wrong = {str(status): number for status, number in streams.statuses.items() if status == 500}
    for visitor in traffic.visitors:
        traffic.refused.update(visitor.refused)
        if not visitor.visits:
            found.faults.append(f"no visit of the console by {visitor.tenant or 'a tenant'} came to its end")
    wrong |= {verb: number for verb, number in traffic.refused.items() if verb.endswith(" 500")}
    found.faults += [f"{number} replies {verb}" for verb, number in wrong.items()]
    found.traffic = {
        "requests": streams.begun,
        "whole": streams.whole,
        "statuses": dict(streams.statuses),
        "done": dict(traffic.done),
        "refused": dict(traffic.refused),
        "pages_of_the_console": sum(visitor.pages for visitor in traffic.visitors),
    }
    found.samples = {
        part: [(s.at_s, s.own_bytes, s.held.files, s.held.threads) for s in kept] for part, kept in samples.of.items()
    }


def _brief(held: dict[str, Held]) -> str:
    return "; ".join(
        f"{part} {each.memory_bytes >> 20} MiB, {each.files} files, {each.sockets} sockets, {each.threads} threads"
        for part, each in held.items()
    )


def as_record(found: Soak) -> dict[str, Any]:
    """Return what a result file has of a run."""
    record = asdict(found)
    with contextlib.suppress(AttributeError):
        assert found.verdict is not None
        record["verdict"] |= {"difference": found.verdict.difference, "holds": found.verdict.holds}
    return record
