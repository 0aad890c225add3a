"""M1: a control plane, an edge and its engine under load, killed at random moments; then the ledger is compared.

Three processes as an operator runs them (`manylora control`, `manylora serve` with its engine), and streams of four
tenants that never let the engine rest, some of which leave in the middle. After the last kill everything is started
once more and stopped in order; what the engine's journals hold, all of which are kept, must be what the ledger holds.
"""

import asyncio
import contextlib
import os
import signal
import sqlite3
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import httpx2

from manylora.bench.servers import free_port
from manylora.clock import SystemClock
from manylora.config.environment import environment
from manylora.server.metering.journal import journals_in, read_journal
from manylora.server.metering.spool import Opened, read_segment, segments_in

Tell = Callable[[str], None]

TARGETS = ("edge", "engine", "control")
STREAMS = 20
TENANTS = 4
RUNNING_WAIT_S = 90.0
EDGE_TOKEN = "the token of this run"
PRICE_NANOUSD = 200


@dataclass
class Streams:
    """The load. running: streams that have had a token and not ended; received: tokens that clients have read."""

    running: int = 0
    received: int = 0
    begun: int = 0
    whole: int = 0
    is_over: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The token counts of each party.

    difference  the ledger's completion tokens less the journals'; M1 is that it is 0
    unequal     requests whose row does not hold what the journals hold of just that request, or that have none
    """

    kills: Mapping[str, int]
    in_mid_stream: int
    requests: int
    unequal: int
    ledger_tokens: int
    journal_tokens: int
    charged_tokens: int
    received_tokens: int
    by_reason: Mapping[str, int]

    @property
    def difference(self) -> int:
        return self.ledger_tokens - self.journal_tokens


@dataclass
class House:
    """The processes of one run, in one folder.

    tls  context of all clients; each client would take 20 ms to make its own
    """

    folder: Path
    base: str
    settings: tuple[str, ...] = ()
    busy: int = 16
    control_port: int = field(default_factory=free_port)
    port: int = field(default_factory=free_port)
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)
    control: "subprocess.Popen[bytes] | None" = None
    edge: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def metering(self) -> Path:
        return self.folder / "metering"

    def start_control(self) -> None:
        given = (f"control.dir={self.folder / 'control'}", f"control.edge_token={EDGE_TOKEN}")
        self.control = self._start("control", ["control", "--port", str(self.control_port)], given)

    def start_edge(self) -> None:
        given = (
            f"control.url=http://127.0.0.1:{self.control_port}",
            f"control.edge_token={EDGE_TOKEN}",
            f"metering.dir={self.metering}",
            "metering.keep_journals=true",
            *self.settings,
        )
        flags = ["serve", "--base", self.base, "--port", str(self.port), "--auth", "on"]
        self.edge = self._start("edge", flags, given)

    def tend(self) -> None:
        """Start again what has ended."""
        if self.control is None or self.control.poll() is not None:
            self.start_control()
        if self.edge is None or self.edge.poll() is not None:
            self.start_edge()

    def kill(self, target: str) -> bool:
        """Kill -9; False if it was not there."""
        process = self._engine() if target == "engine" else getattr(self, target).pid
        if process is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            return True
        return False

    def stop(self) -> None:
        for process in (self.edge, self.control):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(60)

    def _start(self, name: str, words: list[str], assignments: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        sets = [word for assignment in assignments for word in ("--set", assignment)]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "manylora", *words, *sets], stdout=log, stderr=log, env=environment()
            )

    def _engine(self) -> int | None:
        """The process of the engine, which the edge has started."""
        assert self.edge is not None
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if (
                    parent == self.edge.pid
                    and b"manylora.server.engine_client.process.engine_main" in (folder / "cmdline").read_bytes()
                ):
                    return int(folder.name)
        return None


def run_chaos(
    folder: Path,
    base: str,
    *,
    kills: int,
    seed: int,
    vocab: int,
    busy: int = 16,
    settings: tuple[str, ...] = (),
    tell: Tell = lambda line: None,
) -> Verdict:
    """Kill so many times, each target as often as the others, half of them while at least `busy` streams run.

    Args:  base   a known base or a folder; it is given a price
           busy   streams that must run before a kill in mid-stream
           vocab  prompts are random ids below it
    """
    return asyncio.run(_run(House(folder, base, settings, busy), kills, Random(seed), vocab, tell))


async def _run(house: House, kills: int, source: Random, vocab: int, tell: Tell) -> Verdict:
    house.start_control()
    try:
        keys = await _tenants(house)
        house.start_edge()
        streams = Streams()
        sources = [Random(source.random()) for _ in range(STREAMS)]
        load = [asyncio.create_task(_stream(house, streams, keys, own, vocab)) for own in sources]
        targets = [TARGETS[number % len(TARGETS)] for number in range(kills)]
        source.shuffle(targets)
        done = dict.fromkeys(TARGETS, 0)
        in_mid_stream = 0
        for number, target in enumerate(targets):
            is_mid_stream = number % 2 == 0
            if is_mid_stream:
                await _until(house, lambda: streams.running >= house.busy)
                in_mid_stream += 1
            await asyncio.sleep(source.uniform(0.05, 2.5))
            while not house.kill(target):
                house.tend()
                await asyncio.sleep(0.05)
            done[target] += 1
            await asyncio.sleep(source.choice((0.0, source.uniform(0.0, 1.0))))
            house.tend()
            tell(f"{number + 1}/{kills} killed {target}, {streams.received} tokens read")
        await _until(house, lambda: streams.running >= house.busy)
        streams.is_over = True
        await asyncio.gather(*load)
        await _settle(house)
    finally:
        house.stop()
    return _verdict(house, streams, done, in_mid_stream)


async def _tenants(house: House) -> list[str]:
    """Give the base a price and make tenants with much credit; returns their keys."""
    admin = ""
    log = house.folder / "control.log"
    while not admin:
        await asyncio.sleep(0.1)
        found = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("pb_")]
        admin = found[0] if found else ""
    headers = {"authorization": f"Bearer {admin}"}
    url = f"http://127.0.0.1:{house.control_port}"
    keys = []
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=20) as client:
        name = Path(house.base).name
        price = {"base": name, "input_nanousd": PRICE_NANOUSD, "output_nanousd": PRICE_NANOUSD, "force": True}
        (await client.post("/admin/prices", json=price)).raise_for_status()
        for number in range(TENANTS):
            made = await client.post("/admin/tenants", json={"id": f"t{number}", "credit_nanousd": 10**15})
            made.raise_for_status()
            keys.append(str(made.json()["key"]["key"]))
    return keys


async def _stream(house: House, streams: Streams, keys: list[str], source: Random, vocab: int) -> None:
    """One client: request after request, whatever happens to them."""
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
            await _read(house, streams, body, source.choice(keys), leaves_after)
        except (httpx2.HTTPError, ValueError):
            await asyncio.sleep(0.1)


async def _read(house: House, streams: Streams, body: Mapping[str, object], key: str, leaves_after: int | None) -> None:
    streams.begun += 1
    headers = {"authorization": f"Bearer {key}"}
    is_running = False
    async with httpx2.AsyncClient(base_url=house.url, timeout=30, trust_env=False, verify=house.tls) as client:
        try:
            async with client.stream("POST", "/v1/completions", json=body, headers=headers) as reply:
                if reply.status_code != 200:
                    await reply.aread()
                    await asyncio.sleep(0.1)
                    return
                received = 0
                async for line in reply.aiter_lines():
                    if not is_running:
                        streams.running += 1
                        is_running = True
                    if line.startswith("data: {") and '"text":' in line:
                        received += 1
                        streams.received += 1
                    if leaves_after is not None and received >= leaves_after:
                        return
                streams.whole += 1
        finally:
            streams.running -= is_running


async def _until(house: House, holds: Callable[[], bool]) -> None:
    clock = SystemClock()
    end_s = clock.monotonic_s() + RUNNING_WAIT_S
    while not holds():
        house.tend()
        if clock.monotonic_s() > end_s:
            raise RuntimeError(f"the streams did not run again within {RUNNING_WAIT_S:g} s; see {house.folder}")
        await asyncio.sleep(0.02)


async def _settle(house: House) -> None:
    """Stop the edge in order, start it once more so that it closes what was lost, and let it ship."""
    for _ in range(2):
        house.tend()
        await _until(house, lambda: _answers(house))
        assert house.edge is not None
        house.edge.terminate()
        await asyncio.to_thread(house.edge.wait)


def _answers(house: House) -> bool:
    try:
        return httpx2.get(f"{house.url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def _verdict(house: House, streams: Streams, kills: Mapping[str, int], in_mid_stream: int) -> Verdict:
    counted = {
        request_id: found
        for folder in house.metering.iterdir()
        for life in journals_in(folder)
        for request_id, found in read_journal(folder, life).items()
    }
    expected = {
        entry.id: sum(counted[each].committed for each, _, _ in entry.requests if each in counted)
        for folder in house.metering.iterdir()
        for _, path in segments_in(folder)
        for entry in read_segment(path)
        if isinstance(entry, Opened)
    }
    with _ledger(house) as connection:
        ((requests, tokens, charged),) = connection.execute(
            "SELECT COUNT(*), SUM(completion_tokens), SUM(charged_completion_tokens) FROM ledger"
        )
        rows = dict(connection.execute("SELECT id, completion_tokens FROM ledger"))
        by_reason = dict(connection.execute("SELECT finish_reason, COUNT(*) FROM ledger GROUP BY finish_reason"))
    return Verdict(
        kills=kills,
        in_mid_stream=in_mid_stream,
        requests=requests,
        ledger_tokens=tokens or 0,
        unequal=sum(rows.get(usage) != tokens for usage, tokens in expected.items() if tokens or usage in rows),
        journal_tokens=sum(found.committed for found in counted.values()),
        charged_tokens=charged or 0,
        received_tokens=streams.received,
        by_reason=by_reason,
    )


@contextlib.contextmanager
def _ledger(house: House) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(house.folder / "control" / "control.db")
    try:
        yield connection
    finally:
        connection.close()
