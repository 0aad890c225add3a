"""A full disk below the usage: a real server on a small file system goes on living, serves nothing free, recovers."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from manylora.server.engine_client.process.worker import WORKER_MODULE
from tests.conftest import missing
from tests.support.paths import ROOT
from tests.support.serving import READS
from tests.support.waiting import has_word, wait_for

PAGE = 4096
MOUNT = 'mount -t tmpfs -o size=2m tmpfs "$1" && shift && exec "$@"'
"""The file system is of the process's own mount namespace, and goes with it."""


def unshare() -> list[str]:
    """How a process gets a mount namespace here: as root, or as root of a user namespace of its own."""
    for words in (["unshare", "-m"], ["unshare", "-Urm"]):
        with suppress(OSError):
            if not subprocess.run([*words, "sh", "-c", MOUNT, "sh", "/mnt", "true"], capture_output=True).returncode:
                return words
    missing("neither `unshare -m` nor `unshare -Urm` may mount a tmpfs")
    raise AssertionError


@dataclass
class SmallDisk:
    """A server whose usage lies on a disk of 2 MiB; `folder` is that disk, seen from here."""

    process: "subprocess.Popen[str]"
    client: httpx2.Client
    folder: Path
    errors: Path

    def fill(self) -> None:
        with (self.folder / "filler").open("ab", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(PAGE))

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children()
        (found,) = [child for child in children if has_word(child, WORKER_MODULE)]
        return found

    def ask(self, text: str = "SAY:hello") -> httpx2.Response:
        return self.client.post("/generate", json={"inputs": text})

    def told(self, event: str) -> int:
        return self.errors.read_text().count(event)

    def is_refusing(self) -> bool:
        reply = self.ask()
        return reply.status_code == 503 and reply.json()["code"] == "usage_unrecorded"

    def is_serving(self) -> bool:
        return self.client.get("/ready").status_code == 200 and self.ask().status_code == 200

    def usage(self) -> dict[str, int]:
        (found,) = self.client.get("/v1/account/usage", params={"by": "tenant"}).json()["usage"]
        return dict(found)


@contextmanager
def small_disk(directory: Path, *settings: str) -> Iterator[SmallDisk]:
    disk, errors = directory / "disk", directory / "errors"
    disk.mkdir()
    serve = [sys.executable, "-m", "tests.server.serve_fake", str(directory), f"metering.dir={disk}/metering"]
    serve += [setting.format(disk=disk) for setting in settings]
    serve += ["metering.ship_s=0.1", "metering.durable_wait_s=1", "server.drain_s=1", READS]
    words = [*unshare(), "sh", "-c", MOUNT, "sh", str(disk), *serve]
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("READY")).split()[1]
            with httpx2.Client(base_url=url, timeout=60) as client:
                yield SmallDisk(process, client, Path(f"/proc/{process.pid}/root{disk}"), errors)
        finally:
            process.kill()
    assert list(disk.iterdir()) == []  # nothing is mounted any more


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallDisk]:
    with small_disk(tmp_path_factory.mktemp("full")) as server:
        yield server


def read_stream(server: SmallDisk, on_first: Callable[[], None]) -> tuple[int, dict[str, Any]]:
    """How many tokens a stream without an end brought, and its last event."""
    events: list[dict[str, Any]] = []
    with server.client.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data:"):
                events.append(json.loads(line.removeprefix("data:")))
                if len(events) == 1:
                    on_first()
    return len(events) - 1, events[-1]


@pytest.mark.long
def test_what_is_under_way_ends_what_comes_is_refused_and_both_recover(server: SmallDisk) -> None:
    engine = server.engine()
    assert server.ask().status_code == 200
    wait_for(lambda: shipped(server, 1))
    before = server.usage()
    num_tokens, last = read_stream(server, server.fill)
    assert last["code"] == "usage_unrecorded"
    assert "No space left on device" in last["error"]
    wait_for(server.is_refusing)
    reply = server.ask()
    assert reply.headers["retry-after"]
    assert server.client.get("/ready").json()["code"] == "usage_unrecorded"
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/v1/account/usage").status_code == 200
    assert 1 <= server.told("usage.unrecorded") <= 2  # by the journal and by the spool, once each

    server.free()
    wait_for(server.is_serving)
    assert server.engine() == engine
    wait_for(lambda: shipped(server, 3))
    after = server.usage()
    assert after["charged_completion_tokens"] - before["charged_completion_tokens"] == num_tokens + len("hello") + 1
    assert server.told("usage.recorded_again") >= 1


def shipped(server: SmallDisk, num: int) -> bool:
    """Whether the ledger has the usage of so many charged requests."""
    rows = server.client.get("/v1/account/ledger").json()["rows"]
    return len([row for row in rows if row["charged_prompt_tokens"] > 0]) >= num


def make_tenant(server: SmallDisk) -> httpx2.Response:
    return server.client.post("/admin/tenants", json={"id": "acme"})


@pytest.mark.long
def test_an_engine_that_dies_meanwhile_comes_back_and_serves_when_there_is_room(server: SmallDisk) -> None:
    wait_for(server.is_serving)
    server.fill()
    before = server.engine()
    before.kill()
    wait_for(lambda: server.told("engine.up_again") >= 1)
    assert server.engine() != before
    wait_for(server.is_refusing)
    server.free()
    wait_for(server.is_serving)


@pytest.mark.long
def test_a_reply_that_is_not_streamed_ends_with_the_error(server: SmallDisk) -> None:
    wait_for(server.is_serving)
    server.fill()
    try:
        wait_for(lambda: server.ask("HOLD").status_code == 503)
        wait_for(server.is_refusing)
    finally:
        server.free()
    wait_for(server.is_serving)


@pytest.mark.long
def test_a_database_on_a_full_disk_is_read_and_tells_why_it_takes_nothing(tmp_path: Path) -> None:
    """And the server leaves on a signal while the disk is full."""
    with small_disk(tmp_path, "control.dir={disk}/control") as server:
        server.fill()
        wait_for(server.is_refusing)
        refused = make_tenant(server)
        assert refused.status_code == 503
        assert (refused.json()["code"], "disk is full" in refused.json()["error"]) == ("control_unavailable", True)
        assert server.client.get("/admin/tenants").status_code == 200
        server.free()
        wait_for(server.is_serving)
        assert make_tenant(server).status_code == 201
        server.fill()
        wait_for(server.is_refusing)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    assert os.strerror(errno.ENOSPC) in server.errors.read_text()
