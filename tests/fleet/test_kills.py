"""Two edges and three engines on one control plane, killed under load: requests end once, and ledger = engines."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.control.control_process import EDGE_TOKEN, ControlProcess, running_control
from tests.control.postgres_server import empty_database
from tests.fleet.fleet_house import secret_file
from tests.fleet.kill_law import Accounts, assert_accounts
from tests.fleet.kill_load import Load
from tests.fleet.serve_fleet import MODULE
from tests.forks import Fork, forks
from tests.server.app.test_remote_control import make_price
from tests.server.app.test_two_edges_process import new_key
from tests.support.paths import ROOT
from tests.support.serving import own_port
from tests.support.waiting import PATIENCE_S, wait_for

EDGES, HOSTS = ("edge-0", "edge-1"), ("host-0", "host-1", "host-2")
STREAMS = 8


@dataclass
class FleetProcesses:
    """The processes of a fleet by name; each may be killed and started again on its port and its disk."""

    folder: Path
    plane: ControlProcess
    settings: tuple[str, ...] = ()
    database_url: str = ""
    ports: dict[str, int] = field(default_factory=lambda: {name: own_port() for name in (*EDGES, *HOSTS)})
    running: dict[str, Fork] = field(default_factory=dict)

    def start(self, name: str) -> None:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        role = name.partition("-")[0]
        given = [f"fleet.secret_file={self.folder / 'secret'}", "fleet.peer_timeout_s=60", *self.settings]
        if role == "host":
            given += [f"fleet.listen=127.0.0.1:{self.ports[name]}"]
        else:
            given += [
                f"fleet.engines={','.join(f'127.0.0.1:{self.ports[host]}' for host in HOSTS)}",
                f"server.port={self.ports[name]}",
                "server.auth=on",
                f"control.url={self.plane.url}",
                f"control.edge_token={EDGE_TOKEN}",
                f"storage.dir={place}/storage",
                "control.poll_s=0.1",
                "metering.ship_s=0.05",
                "metering.keep_journals=true",
            ]
        printed = place / "printed"
        printed.write_text("")
        words = [role, str(place), *given]
        self.running[name] = forks().start(MODULE, words, output=printed, errors=place / "errors", folder=ROOT)

    def await_ready(self, name: str) -> None:
        place = self.folder / name
        wait_for(lambda: "READY " in (place / "printed").read_text() or self.running[name].poll() is not None)
        assert self.running[name].poll() is None, (place / "errors").read_text()

    def kill(self, name: str) -> None:
        os.kill(self.running[name].pid, signal.SIGKILL)
        self.running[name].wait(PATIENCE_S)

    def stop(self, name: str) -> int:
        self.running[name].terminate()
        return self.running[name].wait(PATIENCE_S)

    def url(self, edge: str) -> str:
        return f"http://127.0.0.1:{self.ports[edge]}"


@contextmanager
def fleet_processes(folder: Path, *settings: str, database_url: str = "") -> Iterator[tuple[FleetProcesses, str]]:
    """Yield a running fleet and a caller's key. `database_url`: of the control plane; empty: an SQLite file."""
    kept = folder / "kept"
    make_price(kept, database_url)
    secret_file(folder).rename(folder / "secret")
    with running_control(kept, f"control.database_url={database_url}") as plane:
        fleet = FleetProcesses(folder, plane, settings, database_url)
        try:
            for name in (*HOSTS, *EDGES):
                fleet.start(name)
            for name in (*HOSTS, *EDGES):
                fleet.await_ready(name)
            yield fleet, new_key(plane.url, {"authorization": f"Bearer {plane.admin_key}"})
        finally:
            for process in fleet.running.values():
                process.kill()
                process.wait(PATIENCE_S)


async def under_load(fleet: FleetProcesses, key: str, kills: list[str], source: Random) -> Load:
    def strike(name: str) -> None:
        fleet.kill(name)
        fleet.start(name)
        fleet.await_ready(name)

    def body(source: Random) -> dict[str, object]:
        return {"inputs": f"SAY:{'x' * source.randint(5, 60)}", "parameters": {"max_new_tokens": 100}}

    load = Load(tuple(map(fleet.url, EDGES)), {"authorization": f"Bearer {key}"}, body)
    await load.run([partial(strike, name) for name in kills], source, STREAMS)
    return load


def accounts_of(fleet: FleetProcesses) -> Accounts:
    return Accounts(
        fleet.database_url or f"sqlite:///{fleet.folder / 'kept' / 'control.db'}",
        edges=tuple(fleet.folder / edge / "metering" for edge in EDGES),
        engines=tuple(fleet.folder / host / "metering" for host in HOSTS),
    )


def assert_the_law(fleet: FleetProcesses, load: Load, kills: list[str]) -> None:
    """Every request ends once, every process ends in order, and the accounts agree."""
    accounts = accounts_of(fleet)
    wait_for(lambda: not accounts.missing())  # counts without an edge are on their way to another one
    assert [name for name in EDGES if fleet.stop(name) != 0] == []
    assert [name for name in HOSTS if fleet.stop(name) != 0] == []
    assert_accounts(accounts, load.read, 2 * STREAMS * sum(name in HOSTS for name in kills))
    assert set(load.ends) <= {"whole", "error", "cut", "502", "503"}, load.ends
    assert load.ends["whole"] > STREAMS


@pytest.mark.long  # half a minute
def test_three_kills_lose_no_count_and_double_none(tmp_path: Path) -> None:
    kills = ["host-1", "edge-0", "host-2"]
    with fleet_processes(tmp_path) as (fleet, key):
        load = asyncio.run(under_load(fleet, key, kills, Random(3)))
        assert_the_law(fleet, load, kills)


@pytest.mark.long  # two minutes
def test_thirty_kills_with_postgresql_lose_no_count_and_double_none(tmp_path: Path) -> None:
    source = Random(30)
    kills = [source.choice((*HOSTS, *EDGES)) for _ in range(30)]
    with empty_database() as url, fleet_processes(tmp_path, database_url=url) as (fleet, key):
        load = asyncio.run(under_load(fleet, key, kills, source))
        assert_the_law(fleet, load, kills)
