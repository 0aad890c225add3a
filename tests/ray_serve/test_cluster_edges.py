"""Two edges and three engines by handles on one PostgreSQL record each request once."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from tests.conftest import missing
from tests.control.control_process import EDGE_TOKEN, ControlProcess, running_control
from tests.control.postgres_server import empty_database
from tests.ray_serve.clusters import ADAPTERS, Fleet, images, make_files, running_fleet
from tests.server.app.test_two_edges_process import new_key
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.long  # half a minute
ENGINES = 3
REQUESTS = 24
START_S = 90.0


@dataclass
class Site:
    """A fleet on one control plane, the headers of a caller and those of the operator."""

    fleet: Fleet
    plane: ControlProcess
    caller: dict[str, str]
    operator: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    folder = tmp_path_factory.mktemp("edges")
    make_files(folder)
    with (
        empty_database() as url,
        running_control(folder / "kept", f"control.database_url={url}", makes_tables=True) as plane,
    ):
        settings: dict[str, object] = {
            "ray__edges": 2,
            **{f"ray__{name}": ENGINES for name in ("engines", "least_engines", "most_engines")},
            "engine__memory_bytes": 700 << 20,
            "control__url": plane.url,
            "control__edge_token": EDGE_TOKEN,
            "control__free_bases": "base",
            "adapters__pushed_bytes": 0,
            "server__auth": "on",
        }
        operator = {"authorization": f"Bearer {plane.admin_key}"}
        caller = {"authorization": f"Bearer {new_key(plane.url, operator)}"}
        with running_fleet(folder, folder / "own", **settings) as fleet:
            wait_for(lambda: len(fleet.processes("engine")) == ENGINES, START_S)
            yield Site(fleet, plane, caller, operator, folder)


def test_two_edges_and_three_engines_on_one_postgresql_record_each_request_once(site: Site) -> None:
    assert len(site.fleet.processes("Edge")) == 2
    asked = [ask(site, number) for number in range(REQUESTS)]
    assert len({*asked}) == REQUESTS

    def recorded() -> list[str]:
        reply = httpx2.get(f"{site.plane.url}/v1/account/ledger?limit=1000", headers=site.caller, timeout=PATIENCE_S)
        return [row["request_id"] for row in reply.json()["rows"] if row["request_id"]]

    wait_for(lambda: {*asked} <= {*recorded()})
    assert sorted(name for name in recorded() if name in asked) == sorted(asked)


def test_a_deletion_by_handles_leaves_no_image_on_three_engines(site: Site) -> None:
    url = f"{site.fleet.url}/v1/adapters/{ADAPTERS[0]}"
    pinned = httpx2.post(url, json={"action": "pin"}, headers=site.operator, timeout=PATIENCE_S)
    assert pinned.status_code in (200, 202), pinned.text

    def found() -> list[Path]:
        shown = httpx2.get(url, headers=site.operator, timeout=PATIENCE_S).json()
        return images(site.folder, shown["digest"]) if shown["digest"] else []

    wait_for(lambda: len(found()) == ENGINES)
    digest = found()[0].name.partition(".")[0]
    deleted = httpx2.delete(url, headers=site.operator, timeout=PATIENCE_S)
    assert deleted.status_code in (200, 202), deleted.text
    wait_for(lambda: not images(site.folder, digest))


def ask(site: Site, number: int) -> str:
    """Complete a prompt over a connection of its own, and return the id of the request."""
    body = {"model": ADAPTERS[number % len(ADAPTERS)], "prompt": f"hello {number}", "max_tokens": 4}
    reply = httpx2.post(f"{site.fleet.url}/v1/completions", json=body, headers=site.caller, timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-request-id"])
