"""What each process of a server takes of the memory: the measurement behind the constants of the memory plan.

    python -m benchmarks.memory.parts [--seconds 20] [--waiting 0] [--limit-bytes N] [--set group.setting=value]

Serves the default base with the demo adapters, and shows anonymous and shared memory of each process after the start
and under 32 streams of short and of longer requests; then what that many waiting requests of 7,000 tokens add. With a
limit (as root) the server runs in a control group of its own, and the most it used and the times it met the limit are
shown.
"""

import argparse
import asyncio
import json
import os
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from manylora.bench.load import drawn, models, run_load
from manylora.bench.servers import Manylora, Running, default_base, serving
from manylora.bench.workloads import WORKLOADS
from manylora.cli.settings import demo_adapter_root
from manylora.models.spec import read_spec
from manylora.server.engine_client.process.worker import WORKER_MODULE

PROMPT_TOKENS = 7000
SETTLE_S = 20
GROUP = "manylora-memory-parts"
FIGURES = (
    *("memory.peak", "memory.events", "memory.max_usage_in_bytes", "memory.failcnt"),
    "memory.oom_control",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--waiting", type=int, default=0)
    parser.add_argument("--limit-bytes", type=int)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    base, root = default_base(), demo_adapter_root()
    adapters = [] if root is None else sorted(path.parent for path in root.glob("*/adapter_config.json"))
    vocab = read_spec(base).vocab
    with tempfile.TemporaryDirectory() as scratch, control_group(options.limit_bytes) as group:
        log = Path(scratch) / "log"
        with serving(Manylora(*options.settings), log, base=base, adapters=adapters) as running:
            leave(group)
            print("\n".join(log.read_text().splitlines()[:10]))
            show(running, "after the start")
            for name in ("triage", "chat"):
                targets = drawn(models([adapter.name for adapter in adapters]))
                asyncio.run(run_load(running.url, WORKLOADS[name], targets, vocab, options.seconds))
                show(running, f"after {name}")
            if options.waiting:
                asyncio.run(wait_in_line(running, options.waiting, vocab))
        files = [] if group is None else [group / name for name in FIGURES]
        for file in files:
            with suppress(OSError):
                print(f"{file.name}: {' '.join(file.read_text().split())}")


def show(running: Running, when: str) -> None:
    for process in running.processes():
        fields = dict(line.split()[:2] for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:])
        parts = {name: int(fields[f"{name}:"]) / 1024 for name in ("Anonymous", "Pss_Shmem", "Pss_File")}
        shown = "  ".join(f"{name} {mib:7.1f} MiB" for name, mib in parts.items())
        print(f"{when:<16} {role(process):<7} {shown}", flush=True)


def role(process: int) -> str:
    words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    module = words[words.index("-m") + 1] if "-m" in words else "manylora"
    return {WORKER_MODULE: "engine", "manylora.adapters.ingest.process": "ingest"}.get(module, "edge")


async def wait_in_line(running: Running, count: int, vocab: int) -> None:
    """Send requests that the engine has no room for, and look when all have arrived."""
    place = urlsplit(running.url)
    writers = []
    for _ in range(count):
        _, writer = await asyncio.open_connection(place.hostname, place.port)
        prompt = [random.randrange(300, vocab) for _ in range(PROMPT_TOKENS)]
        body = json.dumps({"model": "", "prompt": prompt, "max_tokens": 1}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writers.append(writer)
    await asyncio.sleep(SETTLE_S)
    show(running, f"{count} waiting")
    for writer in writers:
        writer.close()


@contextmanager
def control_group(limit_bytes: int | None) -> Iterator[Path | None]:
    """A control group with this process in it, for what it starts; None without a limit."""
    if limit_bytes is None:
        yield None
        return
    first = Path("/sys/fs/cgroup/memory")
    group = (first if first.is_dir() else Path("/sys/fs/cgroup")) / GROUP
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")
        limit.write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        yield group
    finally:
        leave(group)
        group.rmdir()


def leave(group: Path | None) -> None:
    """Count this process elsewhere: what follows is the server's alone."""
    if group is not None:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))


if __name__ == "__main__":
    main()
