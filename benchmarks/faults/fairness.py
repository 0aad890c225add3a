"""What one tenant notices of another, through the real server: figures F1 and F2.

    python -m benchmarks.faults.fairness [--seconds 80] [--rounds 4] [--json FILE]

A quiet tenant sends r requests a second of `triage`, at random moments; r is a 32nd of what the machine serves.

idle       nobody else is there
flood      one other tenant sends 50·r, half as much again as the machine serves, and its requests pile up
neighbours 31 other tenants send as much as the quiet one; all of them together what was served beside the flood

F1 is the 99th percentile of the quiet tenant's first-token time beside the flood ÷ that of the neighbours (all 32 are
alike, so that all count). F2, `to_idle`, is the same beside the flood ÷ on the idle machine, where the quiet tenant's
requests come at the same moments. Requests of a round's first tenth are not counted; the three take turns. The
interval is a bootstrap's over single requests. Beside it:

shares     Jain's index of the service of 8 tenants that all have requests waiting all the time, though some have four
           times as many streams as others, and half of them short prompts and long replies
cost       64 streams of 32 tenants ÷ the same streams of one tenant, in turn A B B A

A tenant is named by the path of its deployment; on the loopback interface that needs no key.
"""

import argparse
import asyncio
import json
import math
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from manylora.bench.load import (
    CONNECT_WAIT_S,
    Answer,
    Connection,
    Figures,
    body_of,
    drawn,
    figures_of,
    keep_busy,
    models,
)
from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, Running, default_base, serving
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.workloads import WORKLOADS, Workload
from manylora.clock import SystemClock
from manylora.models.spec import read_spec

TENANTS, FLOOD = 32, 50
"""Tenants that share the machine in equal parts; requests of the flood for each of the quiet tenant's."""
WORK = WORKLOADS["triage"]
STREAMS_OF_EACH = 2
"""Where 32 tenants fill the server's 64 places."""
BACKLOGGED = tuple(Workload(*shape, streams) for streams in (12, 24, 36, 48) for shape in ((100, 10), (40, 40)))
"""Tenants of which none gets by without waiting; a request of either shape is charged 120."""
UNCOUNTED = 0.1
QUEUE = "engine.max_waiting=100000"
"""The queue's limit is everyone's together: with less, the flood's requests would have those of all refused."""
RESAMPLES = 1000
ENOUGH = 100
"""Requests of which the 99th percentile leaves one out."""


@dataclass(frozen=True)
class Site:
    """The server under test, and how a tenant reaches it."""

    running: Running
    deployment: str
    vocab: int

    def url(self, tenant: str) -> str:
        return f"{self.running.url}/{tenant}/deployments/v2/llms/{self.deployment}"


@dataclass
class Tenant:
    """One tenant's open loop: requests at random moments, whether or not those before have been answered."""

    site: Site
    name: str
    per_s: float
    source: Random
    answers: list[Answer] = field(default_factory=list)
    _idle: list[Connection] = field(default_factory=list)

    async def send_for(self, seconds: float) -> None:
        """Send for so long, then wait for every answer."""
        async with asyncio.TaskGroup() as group:
            end_s = SystemClock().monotonic_s() + seconds
            at_s = end_s - seconds
            while (at_s := at_s + self.source.expovariate(self.per_s)) < end_s:
                await asyncio.sleep(max(0.0, at_s - SystemClock().monotonic_s()))
                group.create_task(self._ask())

    async def _ask(self) -> None:
        connection = self._idle.pop() if self._idle else Connection(self.site.url(self.name), SystemClock())
        try:
            await connection.complete(body_of(WORK, {"model": ""}, self.source, self.site.vocab), self.answers)
        except BaseException:
            connection.close()  # an answer half read is of no use to the next request
            raise
        self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


@dataclass(frozen=True)
class Round:
    """(seconds since the start, first-token time in ms) of the quiet tenants' requests; requests served a second."""

    firsts: list[tuple[float, float]]
    served_per_s: float


async def play(site: Site, quiet: Sequence[tuple[str, float]], flood_per_s: float, seconds: float, seed: int) -> Round:
    """Let quiet tenants, each with its requests a second, and a flood unless it is 0, send for so many seconds."""
    tenants = [Tenant(site, name, per_s, Random(f"{seed} {name}")) for name, per_s in quiet]
    loud = Tenant(site, "flood", flood_per_s, Random(f"{seed} flood"))
    begun_s = SystemClock().monotonic_s()
    flooding = asyncio.create_task(loud.send_for(seconds if flood_per_s else 0.0))
    await asyncio.gather(*(tenant.send_for(seconds) for tenant in tenants))
    if flood_per_s:
        flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    quiet_answers = [answer for tenant in tenants for answer in tenant.answers]
    if failed := [answer.error for answer in quiet_answers if answer.error]:
        raise SystemExit(f"{len(failed)} requests of quiet tenants failed: {failed[0]}")
    for tenant in (*tenants, loud):
        tenant.close()
    counted_s = begun_s + UNCOUNTED * seconds
    ends = [a.ended_s for a in (*quiet_answers, *loud.answers) if a.pieces_s and not a.error and a.ended_s]
    served = sum(counted_s <= end <= begun_s + seconds for end in ends)
    firsts = [
        (round(a.sent_s - begun_s, 3), round(1e3 * (a.pieces_s[0] - a.sent_s), 2))
        for a in quiet_answers
        if a.sent_s >= counted_s
    ]
    if not firsts:
        raise SystemExit(f"a quiet tenant sent nothing in {seconds:g} s: ask for more --seconds")
    return Round(firsts, served / ((1 - UNCOUNTED) * seconds))


def isolation(site: Site, per_s: float, seconds: float, rounds: int) -> dict[str, object]:
    """F1, and the samples it comes from; `per_s` is the quiet tenant's load."""
    beside: dict[str, list[tuple[float, float]]] = {"idle": [], "flood": [], "neighbours": []}
    rates: list[tuple[float, float]] = []
    for number in range(rounds):
        idle = asyncio.run(play(site, [("quiet", per_s)], 0.0, seconds, seed=number))
        loud = asyncio.run(play(site, [("quiet", per_s)], FLOOD * per_s, seconds, seed=number))
        own = loud.served_per_s / TENANTS
        equal = [(f"tenant-{index}", own) for index in range(TENANTS)]
        calm = asyncio.run(play(site, equal, 0.0, seconds / 4, seed=number))
        for name, one in (("idle", idle), ("flood", loud)):
            beside[name] += [(number * seconds + at, ms) for at, ms in one.firsts]
        beside["neighbours"] += calm.firsts
        rates.append((loud.served_per_s, calm.served_per_s))
        ends = [percentile([ms for _, ms in one.firsts]) for one in (idle, loud, calm)]
        told = "p99 {:.0f} ms alone, {:.0f} ms beside the flood, {:.0f} ms beside equals".format(*ends)
        print(f"round {number + 1}: {told}", flush=True)
    few = min(len(beside[name]) for name in ("idle", "flood"))
    if few < ENOUGH:
        print(f"the 99th percentile of {few} requests is the longest of them: ask for more --seconds", flush=True)
    times = {name: [ms for _, ms in firsts] for name, firsts in beside.items()}
    return {
        "F1": ratio(times["flood"], times["neighbours"]),
        "to_idle": ratio(times["flood"], times["idle"]),
        "first_token_ms": {
            name: {"count": len(ms), "median": median(ms), "p99": percentile(ms), "max": max(ms)}
            for name, ms in times.items()
        },
        "served_per_s": {
            name: round(median(found), 2)
            for name, found in zip(("flood", "neighbours"), zip(*rates, strict=True), strict=True)
        },
        "firsts": {name: beside[name] for name in ("idle", "flood")},
    }


def percentile(times: Sequence[float], share: float = 0.99) -> float:
    """The least value that at least this share of the values do not exceed."""
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """99th percentile ÷ 99th percentile, with the middle 95 % of its bootstrap."""
    source = Random(0)
    drawn_again = sorted(
        percentile(source.choices(above, k=len(above))) / percentile(source.choices(below, k=len(below)))
        for _ in range(RESAMPLES)
    )
    low, high = drawn_again[RESAMPLES // 40], drawn_again[-1 - RESAMPLES // 40]
    return {"median": round(percentile(above) / percentile(below), 3), "low": round(low, 3), "high": round(high, 3)}


def loops(site: Site, tenants: Sequence[tuple[str, Workload]], seconds: float) -> list[Figures]:
    """Closed loops of several tenants in one window, which opens when every stream has had its first answer."""
    answers: list[list[Answer]] = [[] for _ in tenants]

    async def run() -> tuple[float, float]:
        clock, source = SystemClock(), Random()
        targets = drawn(models([""]))
        warm = asyncio.Barrier(1 + sum(workload.streams for _, workload in tenants))
        streams = [
            asyncio.create_task(
                keep_busy(Connection(site.url(name), clock), workload, targets, source, site.vocab, own, warm)
            )
            for (name, workload), own in zip(tenants, answers, strict=True)
            for _ in range(workload.streams)
        ]
        await warm.wait()
        begun_s = clock.monotonic_s()
        await asyncio.sleep(seconds)
        ended_s = clock.monotonic_s()
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        return begun_s, ended_s

    begun_s, ended_s = asyncio.run(run())
    found = [figures_of(own, begun_s, ended_s) for own in answers]
    if failed := [figures.first_errors[0] for figures in found if figures.errors]:
        raise SystemExit(f"requests failed: {failed[0]}")
    return found


def shares(site: Site, seconds: float) -> dict[str, object]:
    """Jain's index over tenants that all have requests waiting; service as the scheduler charges it."""
    tenants = [(f"backlogged-{index}", workload) for index, workload in enumerate(BACKLOGGED)]
    found = loops(site, tenants, seconds)
    # Told by tokens, which are finer than requests: a reply's tokens stand for its prompt, too.
    service = [
        figures.output_tokens_per_s * (workload.prompt + 2 * workload.output) / workload.output
        for figures, workload in zip(found, BACKLOGGED, strict=True)
    ]
    index = sum(service) ** 2 / (len(service) * sum(one**2 for one in service))
    return {"jain": round(index, 4), "service_per_s": [round(one, 1) for one in service]}


def cost(site: Site, seconds: float, pairs: int) -> dict[str, object]:
    """Tokens a second and processor time a token, of many tenants ÷ of one with as many streams."""
    each = Workload(WORK.prompt, WORK.output, STREAMS_OF_EACH)
    sides = {
        "many": [(f"tenant-{index}", each) for index in range(TENANTS)],
        "one": [("alone", each) for _ in range(TENANTS)],
    }
    found: dict[str, list[tuple[float, float]]] = {"many": [], "one": []}
    for number in range(pairs):
        for side in ("many", "one") if number % 2 == 0 else ("one", "many"):
            before_s = site.running.processor_s()
            figures = loops(site, sides[side], seconds)
            used_s = site.running.processor_s() - before_s
            tokens = max(1, sum(one.all_output_tokens for one in figures))
            found[side].append((sum(one.output_tokens_per_s for one in figures), 1e3 * used_s / tokens))
        print(f"pair {number + 1}: {found['many'][-1][0]:.0f} and {found['one'][-1][0]:.0f} tokens/s", flush=True)
    both = list(zip(found["many"], found["one"], strict=True))
    return {
        "throughput": median_with_interval([many[0] / one[0] for many, one in both]),
        "processor seconds per token": median_with_interval([many[1] / one[1] for many, one in both]),
    }


def register(site: Site) -> None:
    """Make the tenants known: one that only its usage tells of is closed as soon as that is in the ledger."""
    names = ["quiet", "flood", "alone", *(f"tenant-{index}" for index in range(TENANTS))]
    names += [f"backlogged-{index}" for index in range(len(BACKLOGGED))]
    for name in names:
        body = json.dumps({"id": name}).encode()
        url, head = f"{site.running.url}/admin/tenants", {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, body, head), timeout=CONNECT_WAIT_S):
            pass


def measure(site: Site, seconds: float, rounds: int, pairs: int) -> dict[str, object]:
    register(site)
    each = Workload(WORK.prompt, WORK.output, STREAMS_OF_EACH)
    full = loops(site, [(f"tenant-{index}", each) for index in range(TENANTS)], seconds / 8)
    per_s = sum(figures.requests_per_s for figures in full) / TENANTS
    print(f"the machine serves {TENANTS * per_s:.1f} requests a second; a quiet tenant sends {per_s:.2f}", flush=True)
    found = isolation(site, per_s, seconds, rounds)
    beside = {"shares": shares(site, seconds / 2), "cost": cost(site, seconds / 16, pairs)}
    return {"quiet_per_s": round(per_s, 3), **found, **beside}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=80.0, help="of one flood; the other parts follow from it")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    spec = read_spec(base)
    with tempfile.TemporaryDirectory() as scratch:
        own = (f"control.dir={scratch}/control", f"metering.dir={scratch}/metering")
        with serving(Manylora(QUEUE, *own), Path(scratch) / "log", base=base) as running:
            found = measure(Site(running, base.name, spec.vocab), options.seconds, options.rounds, options.pairs)
    record = {**facts, "seconds": options.seconds, "rounds": options.rounds, **found}
    for name in ("F1", "to_idle", "first_token_ms", "served_per_s", "shares", "cost"):
        print(f"{name}: {json.dumps(found[name])}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
