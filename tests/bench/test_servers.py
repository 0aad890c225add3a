"""A measured server: all its processes are counted, and all are gone at the end."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from manylora.bench.servers import Fields, serving
from manylora.clock import SystemClock
from manylora.config.environment import environment

TWO_PROCESSES = """
import signal, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *arguments):
        pass

work = "held = bytearray(50_000_000)\\nheld[::4096] = b'x' * len(held[::4096])\\nwhile True: sum(range(9999))"
signal.signal(signal.SIGTERM, lambda *_: exit(0))
child = subprocess.Popen([sys.executable, "-c", work], start_new_session=True)
try:
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
finally:
    child.kill()
"""


class TwoProcesses:
    """A server whose work is done by a child in a session of its own, as ours is."""

    name = "two processes"

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        return [sys.executable, "-c", TWO_PROCESSES, str(port)]

    def environment(self) -> Mapping[str, str]:
        return environment()

    def base_fields(self, base: Path) -> Fields:
        return {}

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields:
        return {}


class Broken(TwoProcesses):
    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no such model')"]


def test_time_and_memory_of_all_processes_count(tmp_path: Path) -> None:
    with serving(TwoProcesses(), tmp_path / "log", base=tmp_path) as running:
        before_s = running.processor_s()
        while running.processor_s() < before_s + 0.2:  # the child works, the server waits
            SystemClock().sleep_s(0.05)
        while running.memory_bytes() < 50_000_000:
            SystemClock().sleep_s(0.05)
        assert running.first_token_s > 0
    assert running.process.returncode == 0
    assert running.processor_s() == 0


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such model"), serving(Broken(), tmp_path / "log", base=tmp_path):
        pass


def measure_wrongly(process: "list[subprocess.Popen[bytes]]", log: Path) -> None:
    with serving(TwoProcesses(), log, base=log.parent) as running:
        process.append(running.process)
        raise ValueError("measured wrongly")


def test_a_server_is_stopped_when_the_measurement_fails(tmp_path: Path) -> None:
    process: list[subprocess.Popen[bytes]] = []
    with pytest.raises(ValueError, match="measured wrongly"):
        measure_wrongly(process, tmp_path / "log")
    assert process[0].poll() is not None
