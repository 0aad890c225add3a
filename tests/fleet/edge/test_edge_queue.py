"""A fleet that may have no engine: requests wait at the edge, ask for an engine, and show their wait."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import ManualClock
from manylora.engine.events import Finished, FinishReason, TokenEvent
from manylora.errors import Overloaded, QueueTimeout, Unavailable
from manylora.fleet.edge import edge_queue, requests
from manylora.fleet.edge.replicas import ListedReplicas
from manylora.fleet.edge.transport import FleetTransport
from manylora.ids import Flow
from manylora.server.engine_client.client import EngineClient
from tests.fleet.fleet_house import FleetHouse, end_of, events_of, fleet_config, fleet_house, request, text_of, until

WAITED_S = 7.0


class Sleeping:
    """A fleet whose engine runs once it has been asked for and the gate is open."""

    def __init__(self, house: FleetHouse) -> None:
        self.house = house
        self.listed = ListedReplicas()
        self.gate = asyncio.Event()
        self.asked = 0
        self.clock = ManualClock()
        self.errors: list[Exception] = []

    async def wake(self) -> None:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        await self.gate.wait()
        if not self.listed.addresses():
            hosted = await self.house.host()
            self.listed.set([hosted.host.address])

    async def edge(self, **settings: object) -> EngineClient:
        """An edge that has seen one engine, which is gone again."""
        transport = FleetTransport(
            fleet_config(self.house.folder, **settings), self.listed, clock=self.clock, wake=self.wake
        )
        client = EngineClient(transport)
        self.house.stack.push_async_callback(client.close)
        self.gate.set()
        await client.start()
        self.gate.clear()
        self.listed.set([])
        await until(lambda: not transport._replicas)
        self.asked = 0
        return client


def run(tmp_path: Path, scenario: Callable[[Sleeping], Awaitable[None]]) -> None:
    async def main() -> None:
        async with fleet_house(tmp_path) as house:
            await scenario(Sleeping(house))

    asyncio.run(main())


def test_requests_wait_for_an_engine_and_their_queue_time_has_the_wait(tmp_path: Path) -> None:
    async def scenario(fleet: Sleeping) -> None:
        edge = await fleet.edge()
        assert edge.health().is_up
        asked = [edge.generate(request(f"SAY:{number}")) for number in range(3)]
        text = asyncio.create_task(edge.text(AdapterRef(SourceName.LOCAL, "tone"), Flow("t"), 1))
        await until(lambda: fleet.asked == 1)
        fleet.clock.advance(WAITED_S)
        fleet.gate.set()
        events = await events_of(asked[0])
        assert "".join(chr(each.token_id) for each in events[:1] if isinstance(each, TokenEvent)) == "0"
        (first, last) = (events[0], events[-1])
        assert isinstance(first, TokenEvent)
        assert isinstance(last, Finished)
        assert first.queue_ms is not None
        assert first.queue_ms >= 1e3 * WAITED_S
        assert last.queue_ms is None or last.queue_ms >= 1e3 * WAITED_S
        assert [await text_of(each) for each in asked[1:]] == ["1", "2"]
        assert (await text).waited_ms >= 1e3 * WAITED_S
        again = await events_of(edge.generate(request("SAY:x")))
        assert isinstance(again[0], TokenEvent)
        assert (again[0].queue_ms or 0.0) < 1e3 * WAITED_S

    run(tmp_path, scenario)


def test_an_error_of_the_way_to_an_engine_ends_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_queue, "WAKE_AGAIN_S", 0.01)

    async def scenario(fleet: Sleeping) -> None:
        edge = await fleet.edge()
        fleet.errors = [RuntimeError("odd"), Unavailable("none")]
        fleet.gate.set()
        assert await text_of(edge.generate(request("SAY:x"))) == "x"
        assert fleet.asked >= 3

    run(tmp_path, scenario)


def test_a_request_that_waits_too_long_ends(tmp_path: Path) -> None:
    async def scenario(fleet: Sleeping) -> None:
        edge = await fleet.edge(engine__max_queue_s=0.05)
        late = await end_of(edge.generate(request("SAY:late")))
        assert late.reason is FinishReason.QUEUE_TIMEOUT
        assert late.failure is not None
        assert late.failure.kind is QueueTimeout

    run(tmp_path, scenario)


def test_a_request_that_waits_may_be_left_and_one_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(fleet: Sleeping) -> None:
        edge = await fleet.edge()
        left = edge.generate(request("SAY:left"))
        left.close()
        await until(lambda: edge.num_in_flight == 0)
        with monkeypatch.context() as patch:
            patch.setattr(requests, "MAX_QUEUED", 0)
            with pytest.raises(Overloaded):
                edge.generate(request("SAY:full"))
        fleet.gate.set()
        assert await text_of(edge.generate(request("SAY:ok"))) == "ok"
        assert [bytes(each.tokens) for each in fleet.house.hosts[-1].engine.submitted] == [b"SAY:ok"]

    run(tmp_path, scenario)


def test_a_request_that_the_last_engine_refuses_as_it_leaves_waits_for_the_next_one(tmp_path: Path) -> None:
    async def scenario(fleet: Sleeping) -> None:
        edge = await fleet.edge()
        fleet.gate.set()
        assert await text_of(edge.generate(request("SAY:awake"))) == "awake"
        fleet.gate.clear()
        leaving = fleet.house.hosts[-1].host
        leaving._hub.is_draining = True  # the edge has no beat of it yet
        stream = edge.generate(request("SAY:next"))
        await until(lambda: fleet.asked > 1)
        await leaving.close()
        fleet.listed.set([])
        fleet.gate.set()
        assert await text_of(stream) == "next"

    run(tmp_path, scenario)


def test_without_a_way_to_ask_for_an_engine_a_request_is_refused(tmp_path: Path) -> None:
    async def scenario(fleet: Sleeping) -> None:
        hosted = await fleet.house.host()
        edge = await fleet.house.edge()
        await fleet.house.cut(hosted)
        await until(lambda: not edge.health().is_up)
        with pytest.raises(Unavailable):
            edge.generate(request("SAY:no"))

    run(tmp_path, scenario)
