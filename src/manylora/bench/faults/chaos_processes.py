"""The control plane, the edge and the engine of a run with kills: their start, their kills and their restart."""

import contextlib
import os
import signal
import ssl
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from manylora.bench.servers import free_port
from manylora.config.environment import environment
from manylora.server.engine_client.process.worker import WORKER_MODULE

EDGE_TOKEN = "the token of this run"
SERVER_MODULE = "manylora.bench.faults.counted_server"


@dataclass
class Processes:
    """The processes of one run, in one folder.

    transport  of the edge to its engine: `process`, or `thread`, where the engine ends with the edge
    settings   of the edge; `control_settings`, of the control plane
    tls        the TLS context of all clients; a client without it takes 20 ms to make its own
    """

    folder: Path
    base: str
    settings: tuple[str, ...] = ()
    transport: str = "process"
    control_settings: tuple[str, ...] = ()
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
        words = ["manylora", "control", "--port", str(self.control_port)]
        given = (f"control.dir={self.folder / 'control'}", f"control.edge_token={EDGE_TOKEN}", *self.control_settings)
        for assignment in given:
            words += ["--set", assignment]
        self.control = self._start("control", words)

    def start_edge(self) -> None:
        given = (
            f"model.base={self.base}",
            f"server.port={self.port}",
            "server.auth=on",
            f"control.url=http://127.0.0.1:{self.control_port}",
            f"control.edge_token={EDGE_TOKEN}",
            f"metering.dir={self.metering}",
            "metering.keep_journals=true",
            *self.settings,
        )
        self.edge = self._start("edge", [SERVER_MODULE, self.transport, *given])

    def tend(self) -> None:
        """Start the processes again that have ended."""
        if self.control is None or self.control.poll() is not None:
            self.start_control()
        if self.edge is None or self.edge.poll() is not None:
            self.start_edge()

    def kill(self, target: str) -> bool:
        """Send SIGKILL to a process. Return False if it was not running."""
        process = self.engine() if target == "engine" else getattr(self, target).pid
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

    def _start(self, name: str, words: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, env=environment())

    def engine(self) -> int | None:
        """Return the id of the engine's process, a child of the edge; None while there is none."""
        assert self.edge is not None
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == self.edge.pid and WORKER_MODULE.encode() in (folder / "cmdline").read_bytes():
                    return int(folder.name)
        return None
