"""The folder of pushed adapters: what a name means, whose share is used up, and what a start and an end leave."""

from collections.abc import Callable
from pathlib import Path

import pytest

from manylora.adapter_ref import pushed_ref
from manylora.clock import ManualClock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import StorageLimitExceeded
from manylora.server.names.pushed_adapters import Push, PushedAdapters
from tests.server.conftest import House

InHouse = Callable[..., None]


def pushes(folder: Path, clock: ManualClock | None = None, *, num_bytes: int = 1000, count: int = 2) -> PushedAdapters:
    config = AdaptersConfig(pushed_dir=str(folder), pushed_bytes=num_bytes, pushed_count=count, pushed_ttl_s=60)
    return PushedAdapters(config, clock or ManualClock())


def push(pushed: PushedAdapters, tenant: str, name: str, size: int = 10) -> Push:
    with pushed.taken_in(tenant, name, size) as incoming:
        incoming.weights.write_bytes(b"w" * size)
        (incoming.folder / "adapter_config.json").write_text("{}")
        made = pushed.publish(incoming)
    pushed.take_over(made)
    return made


def test_a_start_and_an_end_leave_no_file(tmp_path: Path) -> None:
    (tmp_path / "pushed" / "acme" / "old" / "7").mkdir(parents=True)
    pushed = pushes(tmp_path / "pushed")
    assert list((tmp_path / "pushed").iterdir()) == []
    assert pushed.current("acme", "old") is None
    push(pushed, "acme", "tone")
    pushed.close()
    assert not (tmp_path / "pushed").exists()


def test_a_name_means_the_push_that_came_last_whatever_its_check_took(tmp_path: Path) -> None:
    pushed = pushes(tmp_path)
    first, second = push(pushed, "acme", "tone"), push(pushed, "acme", "tone")
    assert pushed.take_over(first) is first
    assert pushed.current("acme", "tone") == second.ref == pushed_ref("acme", "tone", 2)
    assert pushed.current("globex", "tone") is None
    pushed.erase(first)
    pushed.erase(second)
    assert list(tmp_path.iterdir()) == []


def test_shares_are_refused_with_the_limit_and_given_back(tmp_path: Path) -> None:
    pushed = pushes(tmp_path)
    with pytest.raises(StorageLimitExceeded, match=r"1000 bytes \(adapters.pushed_bytes\)"):
        push(pushed, "acme", "large", 1001)
    with pytest.raises(ZeroDivisionError), pushed.taken_in("acme", "cut-short", 900):
        raise ZeroDivisionError
    push(pushed, "acme", "one", 900)
    with pytest.raises(StorageLimitExceeded):
        push(pushed, "acme", "two", 900)
    push(pushed, "globex", "newcomer", 50)
    pushed.take("acme", "one")
    push(pushed, "acme", "one", 100)
    push(pushed, "acme", "two", 100)
    with pytest.raises(StorageLimitExceeded, match=r"2 pushed adapters \(adapters.pushed_count\)"):
        push(pushed, "acme", "three", 1)


def test_a_push_expires_after_its_last_request(tmp_path: Path) -> None:
    clock = ManualClock()
    pushed = pushes(tmp_path, clock)
    made = push(pushed, "acme", "tone")
    clock.advance(50)
    assert pushed.current("acme", "tone") == made.ref
    clock.advance(50)
    assert pushed.expired() == []
    clock.advance(10)
    assert pushed.expired() == [made]


def test_a_server_beside_others_refuses_pushes_by_name(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        headers = {"content-type": "application/octet-stream"}
        path = "/v1/adapters/tone/tensors"
        for reply in (
            await house.client.post(path, content=b"12345678", headers=headers),
            await house.client.delete(path),
        ):
            assert reply.status_code == 501
            assert "control.url" in reply.json()["error"]["message"]

    in_house(scenario)
