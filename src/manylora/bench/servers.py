"""A server under measurement: started alone on a free port with its adapters, stopped with all its processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from manylora.bench.processes import memory_bytes, processes_below, processor_s
from manylora.clock import Clock, SystemClock
from manylora.config.environment import environment
from manylora.config.folders import cache_dir
from manylora.config.groups.model import DEFAULT_BASE

START_WAIT_S = 600.0
STOP_WAIT_S = 30.0

Fields = Mapping[str, object]
"""The fields of a JSON body that name a model."""


class Server(Protocol):
    """The command that starts one program, and the form in which its requests name an adapter."""

    name: str

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        """Return the command that serves `base` and these adapters on the loopback interface.

        Without adapters LoRA is off.
        """

    def environment(self) -> Mapping[str, str]:
        """Return the whole environment of the process."""

    def base_fields(self, base: Path) -> Fields: ...

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields: ...


class Manylora:
    """`manylora serve`. Its adapters share one parent folder."""

    name = "manylora"

    def __init__(self, *settings: str, name: str = "manylora") -> None:
        """Create the server. `settings` are `group.setting=value`."""
        self.name = name
        self._settings = settings

    def command(self, port: int, base: Path, adapters: Sequence[Path]) -> list[str]:
        root = adapters[0].parent if adapters else None
        command = [sys.executable, "-m", "manylora", "serve", "--port", str(port), "--base", str(base)]
        command += [] if root is None else ["--adapter-root", str(root)]
        return [*command, *(part for setting in self._settings for part in ("--set", setting))]

    def environment(self) -> Mapping[str, str]:
        return environment()

    def base_fields(self, base: Path) -> Fields:
        return {"model": ""}

    def adapter_fields(self, adapters: Sequence[Path], index: int) -> Fields:
        return {"model": adapters[index].name}


@dataclass(frozen=True)
class Running:
    """A started server: its address, its process and the seconds from the start to its first token."""

    url: str
    process: "subprocess.Popen[bytes]"
    first_token_s: float

    def processor_s(self) -> float:
        """Return the processor seconds that the server's processes have used so far."""
        return processor_s(self.processes())

    def memory_bytes(self) -> int:
        """Return the bytes of memory of the server's processes. A shared page counts once (Linux's `Pss`)."""
        return memory_bytes(self.processes())

    def processes(self) -> dict[int, list[str]]:
        """Return the fields of `/proc/<id>/stat` after the name, for the server's process and all below it."""
        return processes_below(self.process.pid)


@contextmanager
def serving(server: Server, log: Path, *, base: Path, adapters: Sequence[Path] = ()) -> Iterator[Running]:
    """Start a server, wait for its first token, and stop it with all its processes at the end.

    Its usage records go to a folder of its own, so that no measurement enters a ledger.
    """
    with tempfile.TemporaryDirectory() as books:
        own = {"MANYLORA_CONTROL_DIR": f"{books}/control", "MANYLORA_METERING_DIR": f"{books}/metering"}
        yield from _serving(server, log, own, base=base, adapters=adapters)


def _serving(
    server: Server, log: Path, own: Mapping[str, str], *, base: Path, adapters: Sequence[Path]
) -> Iterator[Running]:
    port = free_port()
    command = server.command(port, base, adapters)
    clock = SystemClock()
    begun_s = clock.monotonic_s()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**server.environment(), **own},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _first_token(url, process, server.base_fields(base), log, clock)
        yield Running(url, process, clock.monotonic_s() - begun_s)
    finally:
        _stop(process)


def default_base() -> Path:
    """Return the folder of the default base, as `manylora pull` left it."""
    return cache_dir() / "bases" / DEFAULT_BASE


def fresh_cache(scratch: Path) -> Path:
    """Return a cache folder without packed adapters.

    It shares the compiled kernels, so that they are not compiled anew.
    """
    cache = scratch / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(cache_dir() / "kernels")
    return cache


def _first_token(url: str, process: "subprocess.Popen[bytes]", fields: Fields, log: Path, clock: Clock) -> None:
    end_s = clock.monotonic_s() + START_WAIT_S
    body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0, **fields}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    while clock.monotonic_s() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=START_WAIT_S):
                return
        except urllib.error.HTTPError as error:
            told = error.read()[:500]
            is_starting = error.code == 503 or (error.code == 404 and b"/-/routes" in told)  # the proxy of Ray Serve
            if not is_starting:
                raise SystemExit(f"{url} answered {error.code}: {told!r}") from error
        except OSError:
            pass  # not listening yet
        clock.sleep_s(0.05)
    raise SystemExit(f"the server did not start; its last words:\n{log.read_text(errors='replace')[-3000:]}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Send the process a signal to stop, then kill its whole session."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_WAIT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
