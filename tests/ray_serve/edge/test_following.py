"""The list of replicas outlives errors of Ray's controller, and the silence of one replica."""

import asyncio
from typing import Any

import pytest

from manylora.fleet.edge.replicas import ListedReplicas
from manylora.ids import ReplicaId
from manylora.ray_serve.edge import following
from tests.ray_serve.edge.silent_handles import FakeHandle

ONE, TWO, THREE = (ReplicaId(name) for name in ("one", "two", "three"))


def signal(port: int, *, is_draining: bool = False) -> dict[str, Any]:
    return {"endpoint": f"10.0.0.1:{port}", "draining": is_draining}


class Carrier(Exception):
    """An error of a call on its way."""


def handle() -> FakeHandle:
    return FakeHandle({ONE: signal(1), TWO: signal(2), THREE: signal(3, is_draining=True)})


async def rounds(fleet: FakeHandle, replicas: ListedReplicas, *changes: dict[str, Any]) -> list[tuple[str, ...]]:
    """Follow; before each round make its changes to the handle. Return the addresses after each round."""
    seen: list[tuple[str, ...]] = []
    asked = 0

    def on_call(method: str) -> None:
        nonlocal asked
        assert method == "signal"
        if asked:
            seen.append(replicas.addresses())
        if asked < len(changes):
            for name, value in changes[asked].items():
                setattr(fleet, name, value)
        asked += 1

    fleet.on_call = on_call
    task = asyncio.create_task(following.follow(fleet, replicas, 0.0, (Carrier,)))
    while len(seen) < len(changes):  # noqa: ASYNC110  each round takes turns of the loop
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait([task])
    return seen[: len(changes)]


@pytest.mark.parametrize("failure", [Carrier("no controller"), TimeoutError(), KeyError("odd")])
def test_errors_of_the_controller_change_no_list(failure: Exception) -> None:
    found = asyncio.run(rounds(handle(), ListedReplicas(), {}, {"failure": failure}, {}, {"failure": None}))
    assert found == [("10.0.0.1:1", "10.0.0.1:2")] * 4


@pytest.mark.parametrize("kind", ["silent", "broken"])
def test_a_replica_without_an_answer_stays_in_the_list_until_serve_drops_it(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "ANSWER_WAIT_S", 0.02)
    fleet = handle()
    left = {TWO: signal(2), THREE: signal(3)}
    found = asyncio.run(
        rounds(fleet, ListedReplicas(), {}, {kind: {ONE}}, {}, {kind: set()}, {kind: {ONE}}, {"values": left})
    )
    both = ("10.0.0.1:1", "10.0.0.1:2")
    assert found == [both, both, both, both, both, ("10.0.0.1:3", "10.0.0.1:2")]
    if kind == "silent":
        assert {*fleet.cancelled} == {ONE}


def test_a_replica_that_never_answered_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "ANSWER_WAIT_S", 0.02)
    found = asyncio.run(rounds(handle(), ListedReplicas(), {"silent": {ONE}}, {"silent": set()}))
    assert found == [("10.0.0.1:2",), ("10.0.0.1:1", "10.0.0.1:2")]
