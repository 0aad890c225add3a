"""An edge whose clock differs from its control plane's: leases last as granted, and the log tells it."""

import asyncio

import pytest

from manylora.clock import ManualClock
from manylora.ids import TenantId
from manylora.server.access.credit import LeasedCredit
from manylora.server.access.directory import Directory
from manylora.tenancy import PriceFacts, Snapshot
from tests.server.fake_control import PEPPER, FakeControl


@pytest.mark.parametrize("apart_s", [-300.0, 300.0])
def test_a_lease_lasts_as_granted_by_clocks_minutes_apart(apart_s: float) -> None:
    """The edge's clock, by which a lease of credit would have ended long ago or last for minutes too long."""

    class Skewed(ManualClock):
        def wall_s(self) -> float:
            return super().wall_s() + apart_s

    async def scenario() -> None:
        clock, price = Skewed(), PriceFacts(base="b", version=1, effective_ms=0, input_nanousd=1, output_nanousd=1)
        control = FakeControl(credit=1000)
        true_ms = int(1000 * (clock.wall_s() - apart_s))
        control.now_ms, control.expires_ms = true_ms, true_ms + 60_000
        leased = LeasedCredit(control, clock, edge="e", lease_nanousd=100)

        async def hold() -> None:
            hold = await leased.hold(TenantId("acme"), price, prompt_tokens=1, budget_tokens=1)
            assert hold is not None
            hold.settle(1, 1)

        await hold()
        clock.advance(29)
        await hold()
        assert control.questions == 1, "the lease is in its first half"
        clock.advance(2)
        await hold()
        assert control.questions == 2, "the edge prolongs it in its second half"

    asyncio.run(scenario())


@pytest.mark.parametrize(("apart_s", "is_logged"), [(0, False), (4, False), (-120, True), (120, True)])
def test_clocks_that_differ_are_logged_once(caplog: pytest.LogCaptureFixture, apart_s: int, is_logged: bool) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        taken_ms = int(1000 * (clock.wall_s() + apart_s))
        control = FakeControl(Snapshot(revision=0, taken_ms=taken_ms, is_whole=True, pepper=PEPPER))
        directory = Directory(control, clock, poll_s=1.0, max_age_s=600.0)
        await directory.refresh()
        await directory.refresh()

    asyncio.run(scenario())
    assert caplog.text.count(f"clock_differs by_s={apart_s:+d}") == int(is_logged)
