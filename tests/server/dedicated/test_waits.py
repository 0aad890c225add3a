"""Waits for dedicated deployments: which replica a request gets, when it gives up, and what the edge reports."""

import asyncio
from collections.abc import Sequence

import pytest

from manylora.clock import ManualClock
from manylora.errors import DeploymentNotFound, Overloaded, Unavailable
from manylora.ids import TenantId
from manylora.server.access.directory import Directory
from manylora.server.dedicated.waits import DeploymentWaits
from manylora.tenancy import DELETED, DeploymentFacts, DeploymentUse, Snapshot
from tests.server.fake_control import PEPPER, FakeControl

ACME = TenantId("acme")


def facts(state: str, *urls: str, detail: str = "") -> DeploymentFacts:
    return DeploymentFacts(tenant=ACME, name="mine", base="tiny", state=state, detail=detail, urls=urls)


class Edge:
    """An edge whose control plane tells a deployment's state."""

    def __init__(self, wait_s: float = 60.0) -> None:
        self.clock = ManualClock()
        self.control = FakeControl()
        self.directory = Directory(self.control, self.clock, poll_s=1, max_age_s=600)
        self.waits = DeploymentWaits(
            self.directory, self.control, self.clock, edge="edge-1", wait_s=wait_s, max_waiting=3
        )

    async def told(self, deployment: DeploymentFacts) -> None:
        self.control.snapshot_ = Snapshot(
            revision=1, taken_ms=0, is_whole=False, pepper=PEPPER, deployments=(deployment,)
        )
        await self.directory.refresh()

    async def ready(self, *, wakes: bool = True, without: tuple[str, ...] = ()) -> str:
        end_s = self.waits.end_of_wait(wakes=wakes)
        return await self.waits.ready_url("acme", "mine", end_s=end_s, wakes=wakes, without=without)


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_a_request_that_ends_while_a_report_is_sent_is_in_the_next_one(pause_s: float) -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("ready", "one"))
        found = edge.waits.find("acme", "mine")
        assert found is not None
        with edge.waits.counted(found, wakes=True):
            pass

        async def meanwhile(edge_name: str, uses: Sequence[DeploymentUse]) -> None:
            sent.append([use.last_ms for use in uses])
            if len(sent) == 1:
                edge.clock.advance(pause_s)
                with edge.waits.counted(found, wakes=True):
                    pass

        sent: list[list[int]] = []
        edge.control.report_deployments = meanwhile  # type: ignore[assignment,method-assign]
        begun_ms = int(1000 * edge.clock.wall_s())
        for _ in range(3):
            await edge.waits.report()
        assert sent == [[begun_ms], *([[begun_ms + 1000]] if pause_s else [])]

    asyncio.run(scenario())


def test_a_request_gets_the_replica_with_the_fewest_requests() -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("ready", "one", "two"))
        with edge.waits.sent_to("one"):
            assert await edge.ready() == "two"
        assert await edge.ready(without=("one",)) == "two"
        assert edge.control.deployment_uses == [], "a ready deployment needs no word at once"

    asyncio.run(scenario())


def test_a_request_waits_and_tells_the_control_plane_at_once() -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("standby"))
        found = edge.waits.find("acme", "mine")
        assert found is not None
        with edge.waits.counted(found, wakes=True):
            waiting = asyncio.create_task(edge.ready())
            while not edge.control.deployment_uses:  # noqa: ASYNC110  the fake has no event
                await asyncio.sleep(0)
            assert [(use.name, use.load) for use in edge.control.deployment_uses] == [("mine", 1)]
            assert not waiting.done()
            await edge.told(facts("ready", "one"))
            assert await waiting == "one"
        await edge.waits.report()
        assert [use.load for use in edge.control.deployment_uses] == [1, 0]
        await edge.waits.report()
        assert len(edge.control.deployment_uses) == 2, "an idle deployment is reported once"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("state", "wait_s", "wakes"), [("standby", 0.0, True), ("initializing", 60.0, False), ("stopped", 60.0, True)]
)
def test_a_request_that_may_not_wait_is_refused_with_the_state(state: str, wait_s: float, wakes: bool) -> None:
    async def scenario() -> None:
        edge = Edge(wait_s)
        await edge.told(facts(state, detail="the reason"))
        with pytest.raises(Unavailable, match=f"its state is {state}: the reason"):
            await edge.ready(wakes=wakes)

    asyncio.run(scenario())


def test_a_wait_ends_with_its_time_or_with_the_deployment() -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("initializing"))
        waiting = asyncio.create_task(edge.ready())
        await asyncio.sleep(0)
        edge.clock.advance(61)
        with pytest.raises(Unavailable, match="initializing"):
            await waiting
        gone = asyncio.create_task(edge.ready())
        await asyncio.sleep(0)
        await edge.told(facts(DELETED))
        with pytest.raises(DeploymentNotFound):
            await gone

    asyncio.run(scenario())


@pytest.mark.parametrize("wakes", [True, False])
def test_an_edge_that_drains_takes_no_request_and_waits_for_those_under_way(wakes: bool) -> None:
    async def scenario() -> None:
        edge = Edge()
        found = facts("ready", "one")
        with edge.waits.counted(found, wakes=wakes):
            emptied = asyncio.create_task(edge.waits.emptied())
            await asyncio.sleep(0)
            assert not emptied.done()
            edge.waits.is_draining = True
            with pytest.raises(Unavailable), edge.waits.counted(found, wakes=wakes):
                pass
        await emptied

    asyncio.run(scenario())


def test_requests_that_wait_together_send_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("standby"))
        found = edge.waits.find("acme", "mine")
        assert found is not None
        refreshed = 0
        refresh = edge.directory.refresh

        async def counted() -> None:
            nonlocal refreshed
            refreshed += 1
            await asyncio.sleep(0)
            await refresh()

        monkeypatch.setattr(edge.directory, "refresh", counted)

        async def waits() -> str:
            with edge.waits.counted(found, wakes=True):
                return await edge.ready()

        waiting = [asyncio.create_task(waits()) for _ in range(3)]
        while not refreshed:  # noqa: ASYNC110  the fake has no event
            await asyncio.sleep(0)
        assert [use.load for use in edge.control.deployment_uses] == [3], "the report has all that wait"
        await edge.told(facts("ready", "one"))
        assert await asyncio.gather(*waiting) == ["one"] * 3
        assert refreshed == 2, "one for all, and that of the test"

    asyncio.run(scenario())


def test_a_tenant_has_so_many_requests_that_wait_and_no_more() -> None:
    async def scenario() -> None:
        edge = Edge()
        await edge.told(facts("standby"))
        waiting = [asyncio.create_task(edge.ready()) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"3 requests .* \(placement.max_waiting\)"):
            await edge.ready()
        with pytest.raises(Overloaded):
            edge.waits.require_room("acme", "mine")
        edge.waits.require_room("other", "mine")
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(edge.ready()))
        await edge.told(facts("ready", "one"))
        edge.waits.require_room("acme", "mine")  # nothing waits for a ready one
        assert await asyncio.gather(*waiting) == ["one"] * 3
        assert await edge.ready() == "one"
        again = [asyncio.create_task(edge.ready(without=("one",))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await edge.ready(without=("one",))
        await edge.told(facts("ready", "one", "two"))
        assert await asyncio.gather(*again) == ["two"] * 3

    asyncio.run(scenario())
