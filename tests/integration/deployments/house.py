"""A server with keys that places dedicated deployments of a tiny base, its operator, and its tenants."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import create_engine, select

from manylora.control.storage.database import database_url
from manylora.control.storage.tables import ledger
from manylora.wiring.placer.processes import Process, process_of
from tests.integration.billing.test_tenants import opened
from tests.models.tiny_tokenizers import save_byte_level
from tests.support.serving import running_server
from tests.support.tiny import make_base
from tests.support.waiting import wait_for

CREDIT = 10**11
MEMORY = 2 << 30
START_S = 110
"""Patience with the start of a server or of a replica."""


def flags_of(folder: Path, settings: Mapping[str, object]) -> tuple[str, ...]:
    """The flags of a server that places replicas of the base in a folder."""
    if not (folder / "base").exists():
        make_base(folder / "base", vocab_size=330, max_position_embeddings=4_096)
        save_byte_level(folder / "base")
        (folder / "none").mkdir()
    given = {
        "placement.placer": "local",
        "placement.replica_bytes": MEMORY,
        "placement.memory_bytes": 4 * MEMORY,
        "placement.wait_s": 100,
        "placement.bill_s": 1,
        "engine.memory_bytes": MEMORY,
        "adapters.bank_bytes": 8 << 20,
        "engine.max_running": 4,
        "model.threads": 1,
        "control.reads_per_minute": 1_000_000,  # the tests ask for a status in a loop
        **settings,
    }
    words = ("--base", str(folder / "base"), "--adapter-root", str(folder / "none"), "--auth", "on")
    return (*words, *(f"--set={name}={value}" for name, value in given.items()))


@dataclass
class House:
    """The server, its operator's key, and its folder."""

    client: httpx2.Client
    admin: str
    folder: Path

    def call(self, method: str, path: str, body: object = None, *, key: str) -> httpx2.Response:
        return self.client.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})

    def new_tenant(self, code: str, credit: int = CREDIT) -> str:
        reply = self.call("POST", "/admin/tenants", {"id": code, "credit_nanousd": credit}, key=self.admin)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["key"]["key"])

    def deploy(self, key: str, name: str, **config: Any) -> httpx2.Response:
        body = {"name": name, "config": {"baseModel": "base", **config}, "description": ""}
        return self.call("POST", "/v2/deployments", body, key=key)

    def shown(self, key: str, name: str = "mine") -> dict[str, Any]:  # JSON
        found: dict[str, Any] = self.call("GET", f"/v2/deployments/{name}", key=key).json()["data"]
        return found

    def await_status(self, key: str, name: str, *statuses: str) -> dict[str, Any]:  # JSON
        wait_for(lambda: self.shown(key, name)["status"] in statuses, patience_s=START_S)
        return self.shown(key, name)

    def generate(self, key: str, tenant: str, name: str, tokens: int = 4, path: str = "/generate") -> httpx2.Response:
        return self.call("POST", f"/{tenant}/deployments/v2/llms/{name}{path}", question(tokens), key=key)

    @contextmanager
    def stream(self, key: str, tokens: int) -> Iterator[Iterator[str]]:
        """The lines of a stream of `mine`, of acme."""
        path = "/acme/deployments/v2/llms/mine/generate_stream"
        headers = {"authorization": f"Bearer {key}"}
        with self.client.stream("POST", path, json=question(tokens), headers=headers) as reply:
            assert reply.status_code == 200, reply.read()
            yield reply.iter_lines()

    def replicas(self) -> dict[str, int]:
        """The processes of replicas of this house, by the names of their settings' files."""
        return processes_below(self.folder / "control" / "placements")

    def bills(self) -> list[tuple[int, int]]:
        """The billed seconds, as [begin, end) since 1970, in their order."""
        found = [(row.opened_ms // 1000, row.seconds) for row in self.ledger() if row.seconds is not None]
        return sorted((begin, begin + seconds) for begin, seconds in found)

    def ledger(self) -> Sequence[Any]:  # rows
        engine = create_engine(database_url("", self.folder / "control").set(drivername="sqlite"))
        try:
            with engine.connect() as connection:
                return connection.execute(select(ledger).order_by(ledger.c.number)).all()
        finally:
            engine.dispose()


def question(tokens: int) -> dict[str, Any]:  # JSON
    return {"inputs": "the quick brown fox", "parameters": {"max_new_tokens": tokens, "ignore_eos_token": True}}


def processes_below(folder: Path) -> dict[str, int]:
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        for word in words:
            if word.startswith(f"{folder}/") and word.endswith(".toml"):
                found[word] = int(process.name)
    return found


def family_of(leader: int) -> list[Process]:
    """A replica's process and all below it: its engine, and the loads of adapters."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [leader]
    for each in found:  # it grows
        found += [child for child, parent in parents.items() if parent == each]
    return [process for each in found if (process := process_of(each)) is not None]


@contextmanager
def house(
    folder: Path, settings: Mapping[str, object] | None = None, *, exit_code: int = 0, admin: str = ""
) -> Iterator[House]:
    """A house at whose end no process of its replicas is left.

    exit_code  of a server that the test kills, with a process of its own; its replicas may go on then
    admin      the operator's key of the server that was here before
    """
    admin = admin or opened(folder)
    family: list[Process] = []
    command = (sys.executable, "-P", "-m", "manylora") if exit_code else ()
    flags = flags_of(folder, settings or {})
    with ended_replicas(folder, is_ended=not exit_code):
        with (
            running_server(folder / "log", *flags, exit_code=exit_code, command=command) as url,
            httpx2.Client(base_url=url, timeout=120) as client,
        ):
            own = House(client, admin, folder)
            yield own
            family += [process for each in own.replicas().values() for process in family_of(each)]
        if not exit_code:
            assert own.replicas() == {}
            wait_for(lambda: not any(each.runs for each in family))


@contextmanager
def ended_replicas(folder: Path, *, is_ended: bool = True) -> Iterator[None]:
    """End the replicas of houses in a folder, also those that a killed server has left; `is_ended` False: not here."""
    try:
        yield
    finally:
        for process in processes_below(folder / "control" / "placements").values() if is_ended else ():
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)


def server_of(folder: Path) -> int:
    """The number of the process of a server in a folder, which it names in its command line."""
    wanted = f"--set=control.dir={folder / 'control'}"
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted in (process / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                return int(process.name)
    raise AssertionError("the server does not run")
