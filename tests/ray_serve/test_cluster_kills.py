"""Two edges and three engines on a real Ray cluster, killed under load: requests end once, and ledger = engines."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.conftest import missing
from tests.control.control_process import EDGE_TOKEN, running_control
from tests.fleet.kill_law import Accounts, assert_accounts
from tests.fleet.kill_load import Load
from tests.ray_serve.clusters import ADAPTERS, Fleet, kill, make_files, running_fleet
from tests.server.app.test_two_edges_process import new_key
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]  # two minutes, or more on a busy machine
COUNTED = (sys.executable, "-m", "tests.ray_serve.serve_counted", "cluster")
ROLES = ("engine", "Engine", "Edge")
"""The victims in turn: the process of an engine, the actor of a replica, and an edge."""
KILLS = 30
STREAMS = 6
RECOVERY_S = 90.0
"""Seconds until streams run again after a kill, on a busy machine."""
EDGE_GONE_S = 60.0
"""More than a start of an edge takes. Of a later one, two edges record the last frame (docs/operating-a-fleet.md)."""


def victims(fleet: Fleet) -> list[Callable[[], None]]:
    """The acts that kill the oldest process of each role in turn, once another one of it runs."""

    def strike(role: str) -> None:
        wait_for(lambda: len(fleet.processes(role)) >= 2, RECOVERY_S)
        kill(fleet.processes(role)[0].pid)

    return [partial(strike, ROLES[number % len(ROLES)]) for number in range(KILLS)]


def body(source: Random) -> dict[str, object]:
    parameters = {"max_new_tokens": source.randint(20, 80), "adapter_source": "local"}
    return {"inputs": "hello", "parameters": {**parameters, "adapter_id": source.choice(ADAPTERS)}}


def test_thirty_kills_over_ray_lose_no_count_and_double_none(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    make_files(tmp_path)
    own = tmp_path / "own"
    with running_control(tmp_path / "kept", makes_tables=True) as plane:
        settings: dict[str, object] = {
            "ray__mode": "direct",
            "ray__edges": 2,
            **{f"ray__{name}": 3 for name in ("engines", "least_engines", "most_engines")},
            "engine__memory_bytes": 700 << 20,
            "fleet__counts_dir": own / "counts",
            "fleet__edge_gone_s": EDGE_GONE_S,
            "control__url": plane.url,
            "control__edge_token": EDGE_TOKEN,
            "control__free_bases": "base",
            "control__poll_s": 0.1,
            "metering__keep_journals": True,
            "adapters__pushed_bytes": 0,
            "server__auth": "on",
            "server__drain_s": 10,
        }
        key = new_key(plane.url, {"authorization": f"Bearer {plane.admin_key}"})
        database = f"sqlite:///{tmp_path / 'kept' / 'control.db'}"
        accounts = Accounts(database, edges=(own / "metering",), engines=(own / "metering",))
        with running_fleet(tmp_path, own, COUNTED, **settings) as fleet:
            load = Load((fleet.url,), {"authorization": f"Bearer {key}"}, body, RECOVERY_S)
            asyncio.run(load.run(victims(fleet), Random(30), STREAMS))
            wait_for(lambda: not accounts.missing(), RECOVERY_S + EDGE_GONE_S)
        assert_accounts(accounts, load.read, 2 * STREAMS * KILLS)
        assert set(load.ends) <= {"whole", "error", "cut", "500", "502", "503"}, load.ends
        assert load.ends["whole"] > STREAMS
