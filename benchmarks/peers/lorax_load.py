"""The load that LoRAX's own load test puts on a server, with any LoRAX or manylora server as its target.

PYTHONPATH=$PWD/src:$PWD python -m benchmarks.peers.lorax_load --url http://127.0.0.1:8080 --adapters a,b

Requests for 60 new tokens begin at a constant rate, whatever the server answers: ten a second for a minute. With
adapters, each request names one of them or the base, in turn. A request succeeds with status 200, 60 tokens, whatever
the text, and LoRAX's headers of times and counts. The command fails if any request does not.
"""

import argparse
import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import httpx2

from manylora.bench.machine import describe
from manylora.clock import SystemClock

HEADERS = (
    "x-total-time",
    "x-total-tokens",
    "x-validation-time",
    "x-queue-time",
    "x-inference-time",
    "x-time-per-token",
    "x-prompt-tokens",
    "x-generated-tokens",
    "x-compute-time",
    "x-compute-characters",
)
"""The headers that LoRAX's load test and its users' dashboards read, each a whole number."""
PROMPT = "Which of the following adapters answers a question about a parcel, and how many words does it need for that?"
NEW_TOKENS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--key", default="", help="platform key")
    parser.add_argument("--adapters", default="", help="names with commas; without any, the base alone")
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = asyncio.run(measured(given))
    print(json.dumps(result, indent=1))
    if given.json is not None:
        given.json.write_text(json.dumps(describe() | result, indent=1) + "\n")
    if result["failures"]:
        raise SystemExit(1)


async def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Return medians and 95th percentiles in milliseconds, and the reasons of all failures."""
    names = ["", *filter(None, given.adapters.split(","))]
    clock, period_s = SystemClock(), 1 / given.rate
    headers = {"authorization": f"Bearer {given.key}"} if given.key else {}
    async with httpx2.AsyncClient(base_url=given.url, headers=headers, timeout=120) as client:
        begun_s, tasks = clock.monotonic_s(), []
        for number in range(round(given.rate * given.seconds)):
            await asyncio.sleep(max(0.0, begun_s + number * period_s - clock.monotonic_s()))
            tasks.append(asyncio.create_task(asked(client, names[number % len(names)], clock)))
        replies = await asyncio.gather(*tasks)
    good = [reply for reply in replies if not isinstance(reply, str)]
    figures = {name: [reply[name] for reply in good] for name in ("client_ms", *HEADERS)} if good else {}
    return {
        "requests": len(replies),
        "failures": sorted(reply for reply in replies if isinstance(reply, str)),
        **{name: _spread(values) for name, values in figures.items()},
    }


async def asked(client: httpx2.AsyncClient, adapter: str, clock: SystemClock) -> dict[str, float] | str:
    """Return the figures of one request, or the reason of its failure."""
    begun_s = clock.monotonic_s()
    parameters: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "details": True, "ignore_eos_token": True}
    if adapter:
        parameters["adapter_id"] = adapter
    try:
        reply = await client.post("/generate", json={"inputs": PROMPT, "parameters": parameters})
    except httpx2.HTTPError as error:
        return repr(error)
    if reply.status_code != httpx2.codes.OK:
        return f"{reply.status_code}: {reply.text[:200]}"
    details = reply.json()["details"]
    if details["generated_tokens"] != NEW_TOKENS:
        return f"{details['generated_tokens']} tokens"
    if missing := [name for name in HEADERS if not reply.headers.get(name, "").isdigit()]:
        return f"no whole number in {', '.join(missing)}"
    return {"client_ms": 1000 * (clock.monotonic_s() - begun_s), **{name: int(reply.headers[name]) for name in HEADERS}}


def _spread(values: list[float]) -> dict[str, float]:
    parts = statistics.quantiles(values, n=20) if len(values) > 1 else values * 19
    return {"median": round(statistics.median(values), 1), "p95": round(parts[18], 1)}


if __name__ == "__main__":
    main()
