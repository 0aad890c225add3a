"""What an interactive request notices of a batch, and what the batch gets: figure Q1.

    python -m benchmarks.faults.batches [--seconds 40] [--rounds 4] [--json FILE]

A tenant sends interactive requests of `chat` at random moments, a fifth of what the machine serves. Rounds without and
with a running batch of another tenant take turns; its lines are requests of `chat`, too. Requests of a round's first
tenth are not counted.

Q1     median first-token time of interactive requests beside the batch ÷ without it; also the 95th percentile
share  tokens a second of the batch beside the interactive requests ÷ alone
"""

import argparse
import asyncio
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.faults.fairness import Site, Tenant, percentile
from manylora.bench.load import CONNECT_WAIT_S, body_of
from manylora.bench.machine import describe
from manylora.bench.servers import Manylora, default_base, serving
from manylora.bench.statistics import median, median_with_interval
from manylora.bench.workloads import WORKLOADS
from manylora.clock import SystemClock
from manylora.models.spec import read_spec

WORK = WORKLOADS["chat"]
PART, UNCOUNTED, TAIL = 0.2, 0.1, 0.95
LINES = 2_000
POLL_S = 0.1
CUT = "cut-of-the-form"


def call(site: Site, path: str, body: bytes = b"", kind: str = "application/json") -> Any:
    """The JSON of a reply; a POST if there is a body."""
    request = urllib.request.Request(f"{site.running.url}{path}", body or None, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=CONNECT_WAIT_S) as reply:
        return json.load(reply)


def begin(site: Site, seed: int) -> str:
    """Create a batch, and wait for its first result."""
    source = Random(f"batch {seed}")
    lines = []
    for number in range(LINES):
        body = {**body_of(WORK, {"model": ""}, source, site.vocab), "stream": False}
        body.pop("stream_options", None)
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}
        lines.append(json.dumps(line).encode())
    head = b"Content-Disposition: form-data; name="
    parts = [head + b'"purpose"\r\n\r\nbatch', head + b'"file"; filename="lines.jsonl"\r\n\r\n' + b"\n".join(lines)]
    mark = b"--" + CUT.encode()
    form = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
    file_id = call(site, "/v1/files", form, f"multipart/form-data; boundary={CUT}")["id"]
    order = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    batch_id = str(call(site, "/v1/batches", json.dumps(order).encode())["id"])
    wait_for(site, batch_id, lambda batch: batch["request_counts"]["completed"] > 0)
    return batch_id


def wait_for(site: Site, batch_id: str, holds: Any) -> Any:
    while not holds(batch := call(site, f"/v1/batches/{batch_id}")):
        if batch["status"] == "failed":
            raise SystemExit(f"the batch failed: {batch['errors']}")
        SystemClock().sleep_s(POLL_S)
    return batch


@contextmanager
def batch_beside(site: Site, seed: int, rates: list[float]) -> Iterator[None]:
    """Run a batch meanwhile, and note its results a second."""
    batch_id, clock = begin(site, seed), SystemClock()
    before, begun_s = results(site, batch_id), clock.monotonic_s()
    yield
    after, ended_s = results(site, batch_id), clock.monotonic_s()
    if after == LINES:
        raise SystemExit("the batch ended within the round: raise LINES")
    rates.append((after - before) / (ended_s - begun_s))
    call(site, f"/v1/batches/{batch_id}/cancel", b"{}")
    wait_for(site, batch_id, lambda batch: batch["status"] == "cancelled")


def results(site: Site, batch_id: str) -> int:
    return int(call(site, f"/v1/batches/{batch_id}")["request_counts"]["completed"])


def first_tokens(site: Site, per_s: float, seconds: float, seed: int) -> list[float]:
    """First-token times in milliseconds of a tenant's open loop."""
    tenant = Tenant(site, "interactive", per_s, Random(f"interactive {seed}"))
    begun_s = SystemClock().monotonic_s()
    asyncio.run(tenant.send_for(seconds))
    tenant.close()
    if failed := [answer.error for answer in tenant.answers if answer.error]:
        raise SystemExit(f"{len(failed)} requests failed: {failed[0]}")
    counted_s = begun_s + UNCOUNTED * seconds
    return [1e3 * (a.pieces_s[0] - a.sent_s) for a in tenant.answers if a.pieces_s and a.sent_s >= counted_s]


def measure(site: Site, seconds: float, rounds: int) -> dict[str, object]:
    alone: list[float] = []
    with batch_beside(site, -1, alone):
        SystemClock().sleep_s(seconds / 2)
    per_s = PART * alone[0]
    times: dict[str, list[float]] = {"without": [], "beside": []}
    ratios: dict[str, list[float]] = {"median": [], "tail": []}
    rates: list[float] = []
    for number in range(rounds):
        calm = first_tokens(site, per_s, seconds, number)
        with batch_beside(site, number, rates):
            beside = first_tokens(site, per_s, seconds, number)
        times["without"] += calm
        times["beside"] += beside
        ratios["median"].append(median(beside) / median(calm))
        ratios["tail"].append(percentile(beside, TAIL) / percentile(calm, TAIL))
        print(f"round {number + 1}: {median(calm):.0f} ms without, {median(beside):.0f} ms beside", flush=True)
    return {
        "per_s": round(per_s, 3),
        "Q1": median_with_interval(ratios["median"]),
        "Q1_p95": median_with_interval(ratios["tail"]),
        "first_token_ms": {
            name: {"count": len(found), "median": median(found), "p95": percentile(found, TAIL)}
            for name, found in times.items()
        },
        "share": round(median(rates) / alone[0], 3),
        "batch_lines_per_s": {"alone": round(alone[0], 2), "beside": [round(rate, 2) for rate in rates]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", type=Path, help="write the result here")
    options = parser.parse_args()
    facts, base = describe(), default_base()
    with tempfile.TemporaryDirectory() as scratch:
        own = (f"control.dir={scratch}/control", f"metering.dir={scratch}/metering")
        with serving(Manylora(*own), Path(scratch) / "log", base=base) as running:
            found = measure(Site(running, base.name, read_spec(base).vocab), options.seconds, options.rounds)
    record = {**facts, "seconds": options.seconds, "rounds": options.rounds, **found}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
