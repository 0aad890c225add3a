"""A replica of a real Ray cluster that is stopped: the others answer in time, and its deletion waits for its return."""

import importlib.util
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import missing
from tests.ray_serve.clusters import Fleet, images, make_files, running_fleet
from tests.ray_serve.test_cluster_deletion import places, shown
from tests.support.waiting import PATIENCE_S, wait_for

pytestmark = pytest.mark.long  # a minute
ENGINES = 2
DOOMED, KEPT = "a0", "a1"
START_S = 120.0


def engine_part(fleet: Fleet) -> dict[str, Any]:
    return fleet.state()["Engine"]


def test_the_others_answer_while_a_replica_is_stopped_and_its_deletion_follows(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    make_files(tmp_path)
    counts = {f"ray__{name}": ENGINES for name in ("engines", "least_engines", "most_engines")}
    with running_fleet(tmp_path, tmp_path / "own", **counts, engine__memory_bytes=700 << 20) as fleet:
        wait_for(lambda: sum(each["is_up"] for each in fleet.engines()) == ENGINES, START_S)
        for name in (DOOMED, KEPT):
            pinned = httpx2.post(f"{fleet.url}/v1/adapters/{name}", json={"action": "pin"}, timeout=PATIENCE_S)
            assert pinned.status_code in (200, 202), pinned.text
            wait_for(lambda name=name: [*places(fleet, name).values()] == ["on_device"] * ENGINES)  # type: ignore[misc]
        digest = str(shown(fleet, DOOMED)["digest"])
        assert len(images(tmp_path, digest)) == ENGINES
        away, other = (each["replica"] for each in fleet.engines())
        stopped = psutil.Process(next(each["pid"] for each in fleet.engines() if each["replica"] == away))
        stopped.suspend()
        try:
            seen = shown(fleet, KEPT)
            assert (seen["replicas"], seen["silent"]) == ({other: "on_device"}, [away])
            wait_for(lambda: f'manylora_replica_silent{{replica="{away}"}} 1.0' in metrics(fleet))
            deleted = httpx2.delete(f"{fleet.url}/v1/adapters/{DOOMED}", timeout=PATIENCE_S)
            assert (deleted.status_code, deleted.json()["silent"]) == (202, [away])
            wait_for(lambda: len(images(tmp_path, digest)) <= 1)
            state = engine_part(fleet)
            names = [each["replica"] for each in state["reports"]]
            assert other in names
            assert away in state["silent"] or len(names) == ENGINES  # Ray replaces a replica that is away for long
        finally:
            stopped.resume()
        wait_for(lambda: not images(tmp_path, digest), START_S)
        wait_for(lambda: "manylora_replica_silent{" not in metrics(fleet), START_S)
        wait_for(lambda: len(places(fleet, KEPT)) == ENGINES, START_S)


def metrics(fleet: Fleet) -> str:
    return httpx2.get(f"{fleet.url}/metrics", timeout=PATIENCE_S).text
