"""The whole server as a process on a real socket: leaving callers, signals, a taken port, a killed parent."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest

from manylora.clock import SystemClock
from manylora.errors import ConfigInvalid
from manylora.http.listener import listen
from tests.conftest import long
from tests.forks import Fork, forks
from tests.support.paths import ROOT
from tests.support.serving import own_port
from tests.support.waiting import PATIENCE_S, is_alive, wait_for

FAKE_SERVER = "tests.server.serve_fake"


@contextmanager
def running(directory: Path, *assignments: str) -> Iterator[tuple["subprocess.Popen[str]", httpx2.Client]]:
    """A server with the fake engine, and a client for it."""
    command = [sys.executable, "-m", FAKE_SERVER, str(directory), *assignments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout)
            url = next(line for line in lines if line.startswith("READY")).split()[1]
            with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
                yield process, client
        finally:
            process.kill()


@contextmanager
def ended(process: Fork) -> Iterator[None]:
    """End a fork after the block."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def forked_server(directory: Path, *assignments: str) -> Iterator[tuple[Fork, httpx2.Client]]:
    """The same as a fork, whose imports are done. Its streams are the files `printed` and `errors` of the directory."""
    printed, errors = directory / "printed", directory / "errors"
    words = [str(directory), *assignments]
    process = forks().start(FAKE_SERVER, words, output=printed, errors=errors, folder=ROOT)
    with ended(process):
        wait_for(lambda: process.poll() is not None or "\nREADY " in f"\n{printed.read_text()}")
        assert process.poll() is None, errors.read_text()
        url = printed.read_text().partition("READY ")[2].split()[0]
        with httpx2.Client(base_url=url, timeout=PATIENCE_S) as client:
            yield process, client


def test_a_closed_connection_aborts_the_request(tmp_path: Path) -> None:
    with forked_server(tmp_path) as (_, client):
        with (
            httpx2.Client(base_url=client.base_url, timeout=PATIENCE_S) as leaving,
            leaving.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply,
        ):
            assert next(reply.iter_raw()).startswith(b"data: ")
        wait_for(lambda: 'reason="disconnect"} 1.0' in client.get("/metrics").text)
        wait_for(lambda: "\nmanylora_in_flight 0.0" in client.get("/metrics").text)

        def is_another_aborted() -> bool:
            with half_sent(client, "/generate") as connection:
                connection.sendall(b'"inputs": "HOLD"'.ljust(97) + b"}")
                wait_for(lambda: "\nmanylora_in_flight 1.0" in client.get("/metrics").text)
            wait_for(lambda: "\nmanylora_in_flight 0.0" in client.get("/metrics").text)
            return re.search(r'reason="disconnect"} [2-9]', client.get("/metrics").text) is not None

        # A caller that leaves between its admission and its way to the engine is not counted: another one leaves then.
        wait_for(is_another_aborted)


def test_a_signal_drains_and_the_exit_code_is_zero(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with forked_server(tmp_path, "server.drain_s=60") as (process, client):
        body = {"inputs": "REST SAY:" + "x" * 150}
        with client.stream("POST", "/generate_stream", json=body) as reply:
            events = reply.iter_raw()
            next(events)
            process.send_signal(signal.SIGTERM)
            with httpx2.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
                wait_for(lambda: other.get("/health").status_code == 503)
                refused = other.post("/generate", json={"inputs": "Hi"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            gate.unlink()
            assert b'"generated_text":"' + b"x" * 150 in b"".join(events)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.long
def test_what_runs_longer_than_the_drain_is_ended_with_an_event(tmp_path: Path) -> None:
    with forked_server(tmp_path, "server.drain_s=0.1") as (process, client):
        with client.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply:
            events = reply.iter_raw()
            next(events)
            process.send_signal(signal.SIGINT)
            assert b'"code":"deployment_unavailable"' in b"".join(events)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.long
def test_the_engine_process_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    with forked_server(tmp_path) as (process, _):
        (worker,) = psutil.Process(process.pid).children()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_S)
        wait_for(lambda: not is_alive(worker))


def test_a_taken_port_is_named_with_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigInvalid, match=f"port {port} on 127.0.0.1 is taken"):
            listen("127.0.0.1", port, group="server")


def test_operators_are_told_from_strangers_on_a_real_socket(tmp_path: Path) -> None:
    with forked_server(tmp_path) as (_, client):
        assert client.get("/v1/adapters").status_code == 200
        for stranger in (
            {"x-forwarded-for": "10.0.0.7"},
            {"x-forwarded-for": "127.0.0.1"},
            {"origin": "https://elsewhere.example"},
            {"host": "rebound.example"},
        ):
            for method in ("GET", "DELETE"):
                reply = client.request(method, "/v1/adapters/triage", headers=stranger)
                assert reply.status_code == 403
        other = {"host": "10.1.2.3:8080"}
        assert client.post("/generate", json={"inputs": "Hi"}, headers=other).status_code == 200


@pytest.mark.long  # ten seconds of silence; `tests/server/engine_client/process/test_watchdog.py` has the limits
def test_a_stopped_engine_costs_its_callers_the_queue_time_and_is_restarted(tmp_path: Path) -> None:
    """It neither dies nor answers: the edge ends what waits by its own clock, and streams by the restart."""
    with forked_server(tmp_path, "engine.max_queue_s=1", "server.health_stall_s=10") as (process, client):
        (worker,) = psutil.Process(process.pid).children()
        with client.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply:
            events = reply.iter_raw()
            next(events)
            worker.suspend()
            bodies = {
                "/generate": {"inputs": "x"},
                "/generate_stream": {"inputs": "x"},
                "/v1/completions": {"prompt": "x"},
            }
            with ThreadPoolExecutor() as callers:
                for late in callers.map(lambda path: post(client, path, bodies[path]), bodies):
                    assert (late.status_code, "waited longer than 1 s" in late.text) == (504, True)
            assert b'"error"' in b"".join(events)
        wait_for(lambda: not is_alive(worker))
        wait_for(lambda: client.post("/generate", json={"inputs": "SAY:hello"}).status_code == 200)


def post(client: httpx2.Client, path: str, body: object) -> httpx2.Response:
    """Ask on a connection of its own."""
    with httpx2.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
        return other.post(path, json=body)


@pytest.mark.long
def test_a_long_step_is_not_taken_for_a_stopped_engine(tmp_path: Path) -> None:
    with forked_server(tmp_path, "engine.max_queue_s=1", "server.health_stall_s=1") as (process, client):
        (worker,) = psutil.Process(process.pid).children()
        assert client.post("/generate", json={"inputs": "SPIN"}).status_code == 200
        assert worker.is_running()


def test_while_the_engine_loads_every_route_says_when_to_ask_again(tmp_path: Path) -> None:
    """The port answers from the first moment on, and a signal ends the start."""
    port = own_port()
    words, errors = [str(tmp_path), f"server.port={port}"], tmp_path / "errors"
    (tmp_path / "slowly").touch()
    process = forks().start(FAKE_SERVER, words, output=tmp_path / "printed", errors=errors, folder=ROOT)
    with ended(process), httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        wait_for(lambda: is_answered(client))
        for path in ("/health", "/ping", "/startup", "/ready", "/v1/models", "/admin/tenants", "/metrics"):
            reply = client.get(path)
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "2"), path
        for path, told in (("/generate", "code"), ("/v1/chat/completions", "error")):
            reply = client.post(path, json={})
            assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
            assert "deployment_unavailable" in str(reply.json()[told])
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 1
        assert "stopped before the engine was ready" in errors.read_text().splitlines()[-1]


def test_startup_and_ready_are_apart_from_health(tmp_path: Path) -> None:
    with forked_server(tmp_path, "server.drain_s=60") as (process, client):
        assert {path: client.get(path).status_code for path in ("/health", "/startup", "/ready")} == {
            "/health": 200,
            "/startup": 200,
            "/ready": 200,
        }
        with client.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply:
            next(reply.iter_raw())
            process.send_signal(signal.SIGTERM)
            wait_for(lambda: client.get("/ready").status_code == 503)


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_each_stream_with_its_error(tmp_path: Path) -> None:
    with forked_server(tmp_path, "server.drain_s=60") as (process, client):
        halves = [half_sent(client, path) for path in ("/generate", "/v1/signup", "/v1/account/keys")]
        with client.stream("POST", "/generate_stream", json={"inputs": "HOLD"}) as reply:
            events = reply.iter_raw()
            next(events)
            process.send_signal(signal.SIGINT)
            with httpx2.Client(base_url=client.base_url, timeout=PATIENCE_S) as other:
                wait_for(lambda: other.get("/ready").status_code == 503)
            process.send_signal(signal.SIGINT)
            assert b'"code":"deployment_unavailable"' in b"".join(events)
        for half in halves:
            with half:
                assert half.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert process.wait(PATIENCE_S) == 0
        assert "Traceback" not in (tmp_path / "errors").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, *long(signal.SIGINT)])
@pytest.mark.long
def test_signals_without_end_change_nothing_of_the_end(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path) as (process, client):
        client.get("/health")
        while process.poll() is None:
            process.send_signal(number)
            SystemClock().sleep_s(0.005)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read().count("Traceback")) == (0, 0)


def half_sent(client: httpx2.Client, path: str) -> socket.socket:
    """A connection with half of a request's body."""
    connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=PATIENCE_S)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99"
    connection.sendall(head.encode() + b"\r\n\r\n{")
    return connection


def is_answered(client: httpx2.Client) -> bool:
    try:
        client.get("/health")
    except httpx2.TransportError:
        return False
    return True
