"""This project's server under its workloads, on the base and on mixed adapters."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.bench.load import Figures, drawn, run_load
from manylora.bench.servers import Server, serving
from manylora.bench.workloads import WORKLOADS


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one workload on a number of adapters; 0 is the base."""

    workload: str
    adapters: int
    figures: Figures


def run_suite(
    server: Server,
    base: Path,
    adapters: Sequence[Path],
    workloads: Sequence[str],
    vocab: int,
    seconds: float,
    log: Path,
    report: Callable[[str], None],
) -> list[Measured]:
    """Start `server` once and run each workload on it, on the base and on all adapters, for `seconds` each."""
    found: list[Measured] = []
    report("starting the server")
    with serving(server, log, base=base, adapters=adapters) as running:
        for workload in workloads:
            for count in sorted({0, len(adapters)}):
                report(f"{workload}, {f'{count} adapters' if count else 'base'}")
                fields = [server.adapter_fields(adapters, index) for index in range(count)]
                targets = drawn(fields or [server.base_fields(base)])
                figures = asyncio.run(run_load(running.url, WORKLOADS[workload], targets, vocab, seconds))
                found.append(Measured(workload, count, figures))
    return found
