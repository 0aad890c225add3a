"""A deletion on three replicas of a real Ray cluster, one of which is away: no byte is left in any tier."""

import importlib.util
from pathlib import Path

import httpx2
import pytest

from tests.conftest import missing
from tests.ray_serve.clusters import Fleet, images, kill, make_files, running_fleet
from tests.support.waiting import PATIENCE_S, wait_for
from tests.system.process_memory import holds

pytestmark = pytest.mark.long  # a minute
ENGINES = 3
DOOMED, KEPT = "a0", "a1"
START_S = 120.0
NEEDLE_BYTES = 256


def pin(fleet: Fleet, name: str) -> str:
    """Pin an adapter on every replica, and return the digest of its version."""
    reply = httpx2.post(f"{fleet.url}/v1/adapters/{name}", json={"action": "pin"}, timeout=PATIENCE_S)
    assert reply.status_code in (200, 202), reply.text
    wait_for(lambda: set(places(fleet, name).values()) == {"on_device"} and len(places(fleet, name)) == ENGINES)
    return str(shown(fleet, name)["digest"])


def shown(fleet: Fleet, name: str) -> dict[str, object]:
    reply = httpx2.get(f"{fleet.url}/v1/adapters/{name}", timeout=PATIENCE_S)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def places(fleet: Fleet, name: str) -> dict[str, str]:
    """Return the state of an adapter at each replica."""
    found = shown(fleet, name)["replicas"]
    assert isinstance(found, dict)
    return found


def needle_of(image: Path) -> bytes:
    """Return bytes of the weights that stand in no other adapter's image."""
    data = image.read_bytes()
    middle = (len(data) // 2) & ~63
    needle = data[middle : middle + NEEDLE_BYTES]
    assert len({*needle}) > NEEDLE_BYTES // 8  # no run of zeros
    return needle


def test_a_deletion_leaves_no_byte_on_three_replicas_and_a_killed_one_catches_up(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    make_files(tmp_path)
    counts = {f"ray__{name}": ENGINES for name in ("engines", "least_engines", "most_engines")}
    memory = {"engine__memory_bytes": 700 << 20}
    with running_fleet(tmp_path, tmp_path / "own", ray__mode="direct", **counts, **memory) as fleet:
        wait_for(lambda: sum(each["is_up"] for each in fleet.engines()) == ENGINES, START_S)
        digest, kept = pin(fleet, DOOMED), pin(fleet, KEPT)
        assert len(images(tmp_path, digest)) == len(images(tmp_path, kept)) == ENGINES
        needle, others = needle_of(images(tmp_path, digest)[0]), needle_of(images(tmp_path, kept)[0])
        assert all(holds(engine.pid, needle) for engine in fleet.processes("engine"))
        away = fleet.engines()[0]
        kill(away["pid"])
        deleted = httpx2.delete(f"{fleet.url}/v1/adapters/{DOOMED}", timeout=PATIENCE_S)
        assert deleted.status_code in (200, 202), deleted.text
        wait_for(lambda: len(images(tmp_path, digest)) == 1)  # that of the replica that is away
        wait_for(lambda: len({*pids(fleet)} - {away["engine_pid"]}) == ENGINES, START_S)
        wait_for(lambda: not images(tmp_path, digest), START_S)
        wait_for(lambda: not any(holds(pid, needle) for pid in pids(fleet)))
        body = {"model": DOOMED, "prompt": "hello", "max_tokens": 4}
        assert httpx2.post(f"{fleet.url}/v1/completions", json=body, timeout=PATIENCE_S).status_code == 404
        assert len(images(tmp_path, kept)) == ENGINES
        assert sum(holds(pid, others) for pid in pids(fleet)) >= ENGINES - 1


def pids(fleet: Fleet) -> list[int]:
    return [engine.pid for engine in fleet.processes("engine")]
