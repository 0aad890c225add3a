"""Logs are no condition for life: a server whose standard streams fail serves on, counts, and leaves on a signal."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.control.plane import EDGE_TOKEN
from tests.support.paths import ROOT
from tests.support.serving import own_port
from tests.support.waiting import PATIENCE_S, wait_for

PIPE_BYTES = 4096
"""The least that a pipe holds: a few log lines fill it."""


@contextmanager
def full_disk() -> Iterator[int]:
    with Path("/dev/full").open("wb") as full:
        yield full.fileno()


@contextmanager
def pipe_without_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def pipe_that_is_not_read() -> Iterator[int]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield writer
    os.close(reader)
    os.close(writer)


STREAMS: dict[str, Callable[[], AbstractContextManager[int]] | None] = {
    "full": full_disk,
    "unread": pipe_that_is_not_read,
    "broken": pipe_without_reader,
    "closed": None,
}


def close_all() -> None:
    os.closerange(0, 3)


@contextmanager
def started(words: list[str], stream: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose standard output and error are of one kind; it must leave by itself when it is told to."""
    opened = STREAMS[stream]
    if opened is None:
        process = subprocess.Popen(words, cwd=ROOT, preexec_fn=close_all)
    else:
        with opened() as descriptor:
            process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=descriptor, stderr=descriptor)
            yield from _ended(process)
            return
    yield from _ended(process)


def _ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def is_healthy(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("stream", ["full", "unread", "broken", "closed"])
def test_a_server_serves_on_and_leaves(tmp_path: Path, stream: str) -> None:
    port = own_port()
    url = f"http://127.0.0.1:{port}"
    words = [sys.executable, "-m", "tests.server.serve_fake", str(tmp_path), f"server.port={port}", "server.drain_s=5"]
    with started(words, stream), httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
        wait_for(lambda: is_healthy(client))
        for _ in range(30):  # a line each, some kilobytes
            assert client.post("/generate", json={"inputs": "SAY:hello"}).json()["generated_text"] == "hello"
        # The engine process writes the trace of a step that breaks; it is started again and serves.
        assert client.post("/generate", json={"inputs": "CRASH"}).status_code == 503
        wait_for(lambda: client.post("/generate", json={"inputs": "SAY:hello"}).status_code == 200)
        if stream in ("full", "broken"):
            wait_for(lambda: lost_lines(client) > 30)


def lost_lines(client: httpx2.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("manylora_log_lines_lost "))


@pytest.mark.long
@pytest.mark.parametrize("stream", ["closed", "broken"])
def test_a_control_plane_serves_on_and_leaves(tmp_path: Path, stream: str) -> None:
    port = own_port()
    sets = (f"control.dir={tmp_path}", f"control.edge_token={EDGE_TOKEN}")
    words = [sys.executable, "-m", "manylora", "control", "--port", str(port)]
    words += [f"--set={assignment}" for assignment in sets]
    with started(words, stream), httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        wait_for(lambda: is_healthy(client))


def test_what_was_lost_is_told_when_there_is_room_again() -> None:
    code = (
        "import os, sys; from manylora.system.standard_streams import *; make_streams_lossy(); "
        "print('a\\nb', file=sys.stderr); drain_streams(); os.dup2(1, 2); "
        "print('c', file=sys.stderr); drain_streams(); print(lost_lines(), file=sys.stderr)"
    )
    with full_disk() as full:
        run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, text=True, check=True)
    assert run.stdout.splitlines() == [
        '{"event": "log.lines_lost", "level": "warning", "lines": 2}',
        "c",
        "2",
    ]
