"""M1: a control plane, an edge and its engine under load, killed at random moments; then their counts are compared.

The run starts the processes of an operator (`manylora control`, a server and its engine). Clients of four tenants keep
the engine busy without a pause, and some leave in the middle of a stream. After the last kill the run starts everything
once more and stops it in order. `chaos_verdict.py` then compares the counts of engine, edge, ledger and clients.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import httpx2

from manylora.bench.faults.chaos_processes import Processes
from manylora.bench.faults.chaos_verdict import Streams, Verdict, verdict_of
from manylora.clock import SystemClock

ReportLine = Callable[[str], None]

TARGETS: Mapping[str, tuple[str, ...]] = {"process": ("edge", "engine", "control"), "thread": ("edge", "control")}
"""The processes to kill, by the transport between edge and engine."""
STREAMS = 20
TENANTS = 4
RUNNING_WAIT_S = 90.0
PRICE_NANOUSD = 200


def run_chaos(
    folder: Path,
    base: str,
    *,
    kills: int,
    seed: int,
    vocab: int,
    busy: int = 16,
    settings: tuple[str, ...] = (),
    transport: str = "process",
    report: ReportLine = lambda line: None,
) -> Verdict:
    """Kill `kills` times, each target as often as the others, half of them while at least `busy` streams run.

    Args:  base       a folder of a base model; the run gives it a price
           busy       streams that must run before a kill in mid-stream
           transport  between edge and engine: `process` or `thread`
           vocab      prompts are random ids below it
    """
    processes = Processes(folder, base, settings, transport)
    return asyncio.run(_run(processes, kills, Random(seed), vocab, busy, report))


async def _run(processes: Processes, kills: int, source: Random, vocab: int, busy: int, report: ReportLine) -> Verdict:
    processes.start_control()
    try:
        _, *keys = await make_tenants(processes, TENANTS)
        processes.start_edge()
        streams = Streams()
        sources = [Random(source.random()) for _ in range(STREAMS)]
        load = [asyncio.create_task(_stream(processes, streams, keys, own, vocab)) for own in sources]
        kinds = TARGETS[processes.transport]
        targets = [kinds[number % len(kinds)] for number in range(kills)]
        source.shuffle(targets)
        done = dict.fromkeys(kinds, 0)
        in_mid_stream = 0
        for number, target in enumerate(targets):
            is_mid_stream = number % 2 == 0
            if is_mid_stream:
                await until(processes, lambda: streams.running >= busy)
                in_mid_stream += 1
            await asyncio.sleep(source.uniform(0.05, 2.5))
            while not processes.kill(target):
                processes.tend()
                await asyncio.sleep(0.05)
            done[target] += 1
            await asyncio.sleep(source.choice((0.0, source.uniform(0.0, 1.0))))
            processes.tend()
            report(f"{number + 1}/{kills} killed {target}, {streams.received.total()} tokens read")
        await until(processes, lambda: streams.running >= busy)
        streams.is_over = True
        await asyncio.gather(*load)
        await settle(processes)
    finally:
        processes.stop()
    return verdict_of(processes.folder, streams, done, in_mid_stream)


async def make_tenants(processes: Processes, number: int) -> list[str]:
    """Give the base a price and make tenants with much credit; return the operator's key, then theirs."""
    admin = ""
    log = processes.folder / "control.log"
    while not admin:
        await asyncio.sleep(0.1)
        found = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("pb_")]
        admin = found[0] if found else ""
    headers = {"authorization": f"Bearer {admin}"}
    url = f"http://127.0.0.1:{processes.control_port}"
    keys = [admin]
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
        name = Path(processes.base).name
        price = {"base": name, "input_nanousd": PRICE_NANOUSD, "output_nanousd": PRICE_NANOUSD, "force": True}
        (await client.post("/admin/prices", json=price)).raise_for_status()
        for index in range(number):
            made = await client.post("/admin/tenants", json={"id": f"t{index}", "credit_nanousd": 10**15})
            made.raise_for_status()
            keys.append(str(made.json()["key"]["key"]))
    return keys


async def _stream(processes: Processes, streams: Streams, keys: list[str], source: Random, vocab: int) -> None:
    """Send one request after the other, and go on after any end of them."""
    while not streams.is_over:
        body = {
            "model": "",
            "prompt": [source.randrange(3, vocab) for _ in range(source.randint(1, 40))],
            "max_tokens": source.randint(20, 160),
            "ignore_eos": True,
            "stream": source.random() < 0.9,
        }
        leaves_after = source.randint(1, 40) if source.random() < 0.15 else None
        try:
            await read_stream(processes, streams, body, source.choice(keys), leaves_after)
        except (httpx2.HTTPError, ValueError):
            await asyncio.sleep(0.1)


async def read_stream(
    processes: Processes, streams: Streams, body: Mapping[str, object], key: str, leaves_after: int | None
) -> None:
    """Send one request and read its stream to the end, or until `leaves_after` events with text have come.

    Raises:  HTTPError, for a connection that ended
    """
    streams.begun += 1
    headers = {"authorization": f"Bearer {key}"}
    is_running = False
    async with httpx2.AsyncClient(base_url=processes.url, timeout=30, trust_env=False, verify=processes.tls) as client:
        try:
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
                streams.statuses[reply.status_code] += 1
                if reply.status_code != 200:
                    await reply.aread()
                    await asyncio.sleep(0.1)
                    return
                own = reply.headers["x-request-id"]
                async for line in reply.aiter_lines():
                    if not is_running:
                        streams.running += 1
                        is_running = True
                    if line.startswith("data: {") and '"text":' in line and '"text":""' not in line:
                        streams.received[own] += 1
                    if leaves_after is not None and streams.received[own] >= leaves_after:
                        return
                streams.whole += 1
        finally:
            streams.running -= is_running


async def until(processes: Processes, holds: Callable[[], bool]) -> None:
    """Wait for a condition, and start processes again that have ended meanwhile. Raises `RuntimeError` at the end."""
    clock = SystemClock()
    end_s = clock.monotonic_s() + RUNNING_WAIT_S
    while not holds():
        processes.tend()
        if clock.monotonic_s() > end_s:
            raise RuntimeError(f"the streams did not run again within {RUNNING_WAIT_S:g} s; see {processes.folder}")
        await asyncio.sleep(0.02)


async def settle(processes: Processes) -> None:
    """Stop the edge in order, start it once more so that it closes the lost records, and let it ship them."""
    for _ in range(2):
        processes.tend()
        await until(processes, lambda: answers(processes))
        assert processes.edge is not None
        processes.edge.terminate()
        await asyncio.to_thread(processes.edge.wait)


def answers(processes: Processes) -> bool:
    """Return whether the edge is healthy now."""
    try:
        return httpx2.get(f"{processes.url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
