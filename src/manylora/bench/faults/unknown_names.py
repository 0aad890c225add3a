"""Requests for millions of adapters that do not exist, which must leave the memory bounded."""

import gc
import http.client
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from urllib.parse import urlsplit
from urllib.request import urlopen

from manylora.adapter_ref import SourceName, parse_adapter_ref
from manylora.bench.faults.tiny_base import tiny_engine, write_tiny_base
from manylora.bench.servers import Manylora, fresh_cache, serving
from manylora.engine.engine import Engine
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, mint_request_id

BATCH = 64
SAMPLES = 10
"""Number of samples of the memory, evenly over the run."""
WARM_UP = 8_000
"""Names requested before the first sample: more than the server remembers."""
MIB = 1 << 20
LOCAL = frozenset({SourceName.LOCAL})
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_."


@dataclass(frozen=True, slots=True)
class Grown:
    """`memory_mib` after each tenth of the requests; `wrong` counts answers other than "no such adapter"."""

    asked: int
    wrong: int
    memory_mib: tuple[float, ...]

    @property
    def growth_mib(self) -> float:
        """Growth in MiB from the first sample to the last."""
        return self.memory_mib[-1] - self.memory_mib[0]

    @property
    def slope_mib(self) -> float:
        """Growth in MiB for each 100,000 names."""
        return 1e5 * self.growth_mib / (self.asked * (len(self.memory_mib) - 1) / len(self.memory_mib))


def names(series: int) -> Iterator[str]:
    """Yield random names without end, some repeated, each of a form that a request may use."""
    chance = Random(series)
    while True:
        parts = [
            chance.choice(_LETTERS[:36]) + "".join(chance.choices(_LETTERS[:37], k=chance.randrange(3, 60)))
            for _ in range(chance.choice([1, 1, 2, 3]))
        ]
        yield "/".join(parts)[:200]


def ask_engine(scratch: Path, count: int, series: int = 0) -> Grown:
    """Request `count` unknown names from an engine with its store and local source, in this process."""
    base, root = write_tiny_base(scratch / "tiny"), scratch / "root"
    root.mkdir()
    engine = tiny_engine(base, scratch / "engine", root)
    try:
        source, memory_mib = names(series), []
        wrong = _ask(engine, islice(source, WARM_UP))
        for _ in range(SAMPLES):
            wrong += _ask(engine, islice(source, count // SAMPLES))
            gc.collect()
            memory_mib.append(_resident_bytes() / MIB)
        engine.check()
    finally:
        engine.close()
    return Grown(count // SAMPLES * SAMPLES, wrong, tuple(memory_mib))


def _ask(engine: Engine, wanted: Iterator[str]) -> int:
    wrong = 0
    while batch := list(islice(wanted, BATCH)):
        for name in batch:
            engine.submit(_request(name))
        ended = 0
        while engine.has_work:
            events = engine.step()
            ended += len(events.finished)
            wrong += sum(end.failure is None or end.failure.error != "AdapterNotFound" for end in events.finished)
        wrong += abs(len(batch) - ended)
    return wrong


def _request(name: str) -> Request:
    return Request(
        id=mint_request_id(),
        flow=Flow("t"),
        salt="",
        tokens=(5, 6, 7),
        adapter=parse_adapter_ref(name, None, LOCAL),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=2),
    )


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Served:
    """The memory of a server's processes and the number of its metric series, before and after."""

    grown: Grown
    series_before: int
    series_after: int


def ask_server(scratch: Path, count: int, series: int = 0, *, warm_up: int = WARM_UP) -> Served:
    """Request `count` unknown names from `manylora serve` over HTTP, half of them on each dialect.

    The run requests `warm_up` names before the first sample.
    """
    base, root = write_tiny_base(scratch / "tiny"), scratch / "root"
    root.mkdir()
    settings = (f"adapters.roots={root}", "adapters.hub_endpoint=", f"model.cache_dir={fresh_cache(scratch)}")
    server = Manylora(*settings, "model.threads=1", "engine.kv_bytes=1048576")
    with serving(server, scratch / "log", base=base) as running:
        parts, source, memory_mib = urlsplit(running.url), names(series), []
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        wrong = _post_all(connection, islice(source, warm_up))
        before = _num_series(running.url)
        for _ in range(SAMPLES):
            wrong += _post_all(connection, islice(source, count // SAMPLES))
            memory_mib.append(running.memory_bytes() / MIB)
        after = _num_series(running.url)
        connection.close()
    return Served(Grown(count // SAMPLES * SAMPLES, wrong, tuple(memory_mib)), before, after)


def _post_all(connection: http.client.HTTPConnection, wanted: Iterator[str]) -> int:
    """Return the number of answers other than 404; requests alternate between the dialects."""
    return sum(_post(connection, name, is_openai=number % 2 == 1) != 404 for number, name in enumerate(wanted))


def _post(connection: http.client.HTTPConnection, name: str, *, is_openai: bool) -> int:
    if is_openai:
        path, body = "/v1/completions", {"model": name, "prompt": "x", "max_tokens": 1}
    else:
        path, body = "/generate", {"inputs": "x", "parameters": {"adapter_id": name, "max_new_tokens": 1}}
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def _num_series(url: str) -> int:
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        return sum(not line.startswith(b"#") for line in answer)
