"""Clusters for tests: `manylora cluster serve --local` as a user starts it, over a tiny base, and its processes."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil
from peft import LoraConfig

from tests.support.serving import make_cache, own_port
from tests.support.tiny import ALL, TinyBase, make_adapter, make_base
from tests.support.waiting import PATIENCE_S, is_alive, wait_for

ADAPTERS = ("a0", "a1", "a2", "a3")
WINDOW = 4096
START_WAIT_S = 150.0
STOP_WAIT_S = 90.0
LONGEST_S = 200.0
"""Seconds for a reply that waits behind long ones."""
SETTINGS = {
    "engine.max_model_len": WINDOW,
    "engine.kv_bytes": 24 << 20,
    "engine.memory_bytes": 1 << 30,
    "adapters.bank_bytes": 4 << 20,
    "metering.ship_s": 0.05,
    "server.drain_s": 60,
    "ray.engine_cpus": 0.1,
    "ray.edge_cpus": 0.1,
}
"""Small engines, several of which fit two processors by Ray's count."""
COMMAND = (sys.executable, "-m", "manylora", "cluster")


def make_files(folder: Path) -> TinyBase:
    """Save the tiny base `base`, and `ADAPTERS` below `adapters`."""
    from tests.models.tiny_tokenizers import save_byte_level

    base = make_base(folder / "base", vocab_size=340, num_hidden_layers=2, max_position_embeddings=WINDOW)
    save_byte_level(base.directory)
    save_adapters(base, folder, ADAPTERS)
    make_cache(folder / "cache")
    return base


def save_adapters(base: TinyBase, folder: Path, names: Sequence[str], *, seed: int = 0) -> None:
    """Save an adapter of each name below `folder`, the first one of that seed and each with other weights."""
    for number, name in enumerate(names, seed):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=ALL, task_type="CAUSAL_LM")
        make_adapter(base, folder / "adapters" / name, config, seed=number)


def flags(folder: Path, own: Path, **changes: object) -> list[str]:
    """Return the settings of a server or a fleet over the files in `folder`, with folders of its own in `own`."""
    values = {
        **SETTINGS,
        "model.base": folder / "base",
        "model.cache_dir": folder / "cache",
        "adapters.roots": folder / "adapters",
        "control.dir": own / "control",
        "metering.dir": own / "metering",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return [f"--set={name}={value}" for name, value in values.items()]


@dataclass
class Fleet:
    """A running cluster."""

    url: str
    process: "subprocess.Popen[bytes]"
    settings: list[str]
    log: Path
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))

    def complete(self, model: str, prompt: str = "hello", *, max_tokens: int = 8, **more: object) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **more}
        reply = httpx2.post(f"{self.url}/v1/completions", json=body, timeout=LONGEST_S)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def text(self, model: str, prompt: str = "hello", **more: object) -> str:
        return str(self.complete(model, prompt, **more)["choices"][0]["text"])  # type: ignore[arg-type]

    def first_wait_ms(self, model: str) -> float:
        """Return the milliseconds in the queue that a request's reply shows."""
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 4, "adapter_id": model, "adapter_source": "local"}}
        reply = httpx2.post(f"{self.url}/generate", json=body, timeout=LONGEST_S)
        assert reply.status_code == 200, reply.text
        return float(reply.headers["x-queue-time"])

    def stream(self, model: str, max_tokens: int) -> "Streamed":
        """Begin a stream, and return once its first token has come."""
        streamed = Streamed()
        streamed.reading = self.readers.submit(streamed.read, self.url, model, max_tokens)
        wait_for(lambda: streamed.num_tokens > 0 or streamed.reading.done())
        return streamed

    def state(self) -> dict[str, dict[str, Any]]:
        """Return what `manylora cluster status --json` shows, by deployment."""
        found = subprocess.run(
            [*COMMAND, "status", "--json", *self.settings], capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        return {each["name"]: each for each in json.loads(found.stdout.splitlines()[-1])}

    def engines(self) -> list[dict[str, Any]]:
        return list(self.state()["Engine"]["reports"])

    def processes(self, role: str) -> list[psutil.Process]:
        """Return the processes of a role that run, the oldest first: `engine`, or an actor's `Engine` or `Edge`."""
        return self._found("engine_main" if role == "engine" else f"ray::ServeReplica:manylora:{role}")

    def of_ray(self, name: str) -> list[psutil.Process]:
        """Return the processes of Ray's head with a name in their command: `gcs_server` or `ServeController`."""
        return self._found(name)

    def _found(self, mark: str) -> list[psutil.Process]:
        found = []
        for each in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if mark in " ".join(each.cmdline()) and each.status() != psutil.STATUS_ZOMBIE:
                    found.append((each.create_time(), each.pid, each))
        return [each for _, _, each in sorted(found, key=lambda one: one[:2])]

    def is_ready(self) -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(f"{self.url}/health", timeout=PATIENCE_S).status_code == 200
        return False

    def rows(self) -> list[dict[str, Any]]:
        """Return the ledger's rows."""
        found = httpx2.get(f"{self.url}/v1/account/ledger?limit=1000", timeout=PATIENCE_S)
        assert found.status_code == 200, found.text
        return list(found.json()["rows"])

    def ledger(self) -> list[str]:
        """Return the ids of the requests in the ledger, each as often as it is there."""
        return [row["request_id"] for row in self.rows()]


@dataclass
class Streamed:
    """One stream as its client reads it: its tokens, its ends, and the failure of the connection."""

    reading: "Future[None]" = field(default_factory=lambda: Future())
    request_id: str = ""
    num_tokens: int = 0
    ends: list[str] = field(default_factory=list)
    error: str = ""

    def read(self, url: str, model: str, max_tokens: int) -> None:
        body = {"model": model, "prompt": "hello", "max_tokens": max_tokens, "temperature": 0, "stream": True}
        more = {"ignore_eos": True}
        try:
            with httpx2.stream("POST", f"{url}/v1/completions", json=body | more, timeout=PATIENCE_S) as reply:
                self.request_id = reply.headers.get("x-request-id", "")
                for line in reply.iter_lines():
                    self._take(line)
        except httpx2.HTTPError as error:
            self.error = f"{type(error).__name__}: {error}"

    def _take(self, line: str) -> None:
        data = line.removeprefix("data: ")
        if data == "[DONE]" or not line.startswith("data: "):
            return
        event = json.loads(data)
        if "error" in event:
            self.ends.append("error")
            return
        (choice,) = event["choices"]
        self.num_tokens += 1
        if choice["finish_reason"] is not None:
            self.ends.append(choice["finish_reason"])


@contextmanager
def running_fleet(folder: Path, own: Path, program: Sequence[str] = COMMAND, /, **changes: object) -> Iterator[Fleet]:
    """Yield a cluster; at the end it must stop in order, and leave no process behind."""
    port = own_port()
    settings = flags(folder, own, server__port=port, **changes)
    log = own / "log"
    own.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "serve", "--local", *settings], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    family: list[psutil.Process] = []
    try:
        wait_for(lambda: process.poll() is not None or "is served at" in log.read_text("utf-8"), START_WAIT_S)
        found = re.search(r"is served at (http://\S+)", log.read_text(encoding="utf-8"))
        assert found is not None, log.read_text(encoding="utf-8")
        fleet = Fleet(found[1], process, settings, log)
        family = psutil.Process(process.pid).children(recursive=True)
        yield fleet
        fleet.readers.shutdown()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_WAIT_S) == 0, log.read_text(encoding="utf-8")
        wait_for(lambda: not any(map(is_alive, family)))
    finally:
        end(process, family)


def end(process: "subprocess.Popen[bytes]", family: list[psutil.Process]) -> None:
    """Kill what a failed test leaves: this cluster's own processes."""
    with suppress(psutil.Error):
        family = [*family, *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        with suppress(psutil.Error):
            each.kill()
    process.kill()
    process.wait()


def images(folder: Path, digest: str) -> list[Path]:
    """Return the packed images of a version, in the disk tiers of all replicas over the files of `make_files`."""
    return [path for path in (folder / "cache" / "adapters").rglob(f"{digest}*") if path.is_file()]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
