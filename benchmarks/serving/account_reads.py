"""Inference beside one tenant that reads its own account without pause, and without it, in turns in one run.

PYTHONPATH=$PWD/src:$PWD python -m benchmarks.serving.account_reads --json benchmarks/results/account-reads.json
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, default_base, serving
from manylora.clock import SystemClock
from manylora.config.environment import environment
from manylora.config.settings import load_config
from manylora.control.billing.ledger import insert_records
from manylora.control.process.opening import open_control
from manylora.control.tenants.audit import on_the_machine
from manylora.control.tenants.signup import open_account
from manylora.ids import UsageId
from manylora.usage import UsageRecord

PATHS = (
    "/v1/account/usage?by=day,adapter",
    "/v1/account/ledger?limit=1000",
    "/v1/account/invoices/{month}?format=html",
    "/v1/account",
)
SHIPMENT = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=46_000, help="lines of usage by day, tenant and adapter")
    parser.add_argument("--readers", type=int, default=8, help="connections of the tenant that reads")
    parser.add_argument("--turns", type=int, default=5, help="pairs of a time without readers and one with them")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each time")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        key = asyncio.run(_fill(scratch / "control", given.lines))
        server = Manylora(f"control.dir={scratch / 'control'}", f"metering.dir={scratch / 'metering'}")
        with serving(server, scratch / "log", base=default_base()) as running:
            result = describe() | {
                "lines": given.lines,
                "readers": given.readers,
                **_latencies(running.url, key, given),
                "command_line_s": _command_line_s(running.url),
            }
    print(json.dumps(result, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


async def _fill(folder: Path, lines: int) -> str:
    """A control plane with a ledger of one row for each line, all of one tenant; returns that tenant's key."""
    control = open_control(load_config(None, {"control.dir": str(folder)}, {}), is_key_needed=False)
    _, _, key = await open_account(control, on_the_machine(control), "reader")
    now_ms = control.now_ms()
    records = [_record(number, now_ms) for number in range(lines)]
    for begin in range(0, lines, SHIPMENT):
        await insert_records(control, records[begin : begin + SHIPMENT])
    await control.close()
    return key


def _record(number: int, now_ms: int) -> UsageRecord:
    return UsageRecord(
        id=UsageId(f"usage-{number}"),
        tenant="reader",  # type: ignore[arg-type]  # a name of ours
        key=None,
        request_id=f"request-{number}",
        edge="edge",
        base="SmolLM2-135M-Instruct",
        adapter=f"triage-{number}/1",
        adapter_source="pbase",
        adapter_owner="reader",  # type: ignore[arg-type]  # as above
        adapter_digest="d" * 64,
        opened_ms=now_ms,
        prompt_tokens=100,
        cached_tokens=0,
        completion_tokens=10,
        charged_prompt_tokens=100,
        charged_completion_tokens=10,
        num_sequences=1,
        finish_reason="length",
    )


def _latencies(url: str, key: str, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a short completion, one after the other, without readers and with them."""
    alone: list[float] = []
    beside: list[float] = []
    statuses: Counter[int] = Counter()
    for _ in range(given.turns):
        alone += _ask_for(url, given.seconds)
        with _reading(url, key, given.readers, statuses):
            beside += _ask_for(url, given.seconds)
    told = {"alone_ms": _summary(alone), "beside_ms": _summary(beside)}
    ratios = {name: round(told["beside_ms"][name] / told["alone_ms"][name], 3) for name in ("median", "p95")}
    return {**told, "beside_over_alone": ratios, "reads": {str(status): n for status, n in sorted(statuses.items())}}


def _ask_for(url: str, seconds: float) -> list[float]:
    clock = SystemClock()
    body = json.dumps({"prompt": [5, 6, 7, 8] * 8, "max_tokens": 8, "temperature": 0, "ignore_eos": True}).encode()
    taken: list[float] = []
    end_s = clock.monotonic_s() + seconds
    while (begun_s := clock.monotonic_s()) < end_s:
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            reply.read()
        taken.append(1e3 * (clock.monotonic_s() - begun_s))
    return taken


@contextmanager
def _reading(url: str, key: str, readers: int, statuses: Counter[int]) -> Iterator[None]:
    """Readers of one tenant that ask again as soon as they are answered, refused or not."""
    month = subprocess.run(["date", "-u", "+%Y-%m"], capture_output=True, text=True, check=True).stdout.strip()
    stop = threading.Event()

    def read(number: int) -> None:
        while not stop.is_set():
            path = PATHS[number % len(PATHS)].format(month=month)
            request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {key}"})
            try:
                with urllib.request.urlopen(request, timeout=120) as reply:
                    reply.read()
                    statuses[reply.status] += 1
            except urllib.error.HTTPError as error:
                statuses[error.code] += 1
            number += 1

    threads = [threading.Thread(target=read, args=(number,)) for number in range(readers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _command_line_s(url: str) -> float:
    """Seconds that `manylora usage` takes for every line, with the start of its process."""
    clock = SystemClock()
    words = (sys.executable, "-m", "manylora", "usage", "--by", "day,tenant,adapter", "--url", url)
    begun_s = clock.monotonic_s()
    subprocess.run(words, env=environment(), stdout=subprocess.DEVNULL, check=True)
    return round(clock.monotonic_s() - begun_s, 2)


def _summary(taken: list[float]) -> dict[str, float]:
    quantiles = statistics.quantiles(taken, n=20)
    return {"requests": len(taken), "median": round(statistics.median(taken), 2), "p95": round(quantiles[-1], 2)}


if __name__ == "__main__":
    main()
