"""A closed tenant at an edge: its engines hear of it once, and of no other tenant."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from manylora.clock import SystemClock
from manylora.errors import Unavailable
from manylora.ids import Flow, TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.engine_client.client import EngineClient
from manylora.tenancy import Snapshot, TenantFacts, TenantState
from tests.server.conftest import open_house
from tests.server.fake_control import PEPPER, FakeControl

ACTIVE, SUSPENDED, CLOSED = TenantState.ACTIVE, TenantState.SUSPENDED, TenantState.CLOSED


def told(*, is_whole: bool = False, **states: TenantState) -> Snapshot:
    tenants = tuple(TenantFacts(id=TenantId(name), state=state) for name, state in states.items())
    return Snapshot(revision=0, taken_ms=0, is_whole=is_whole, pepper=PEPPER, tenants=tenants)


async def hears(directory: Directory, control: FakeControl, snapshot: Snapshot) -> None:
    control.snapshot_ = snapshot
    await directory.refresh()


def test_the_engine_drops_the_grammars_of_a_tenant_that_is_closed(tmp_path: Path) -> None:
    async def main() -> None:
        control = FakeControl(told(is_whole=True, acme=ACTIVE, beta=ACTIVE, gone=CLOSED))
        directory = Directory(control, SystemClock(), poll_s=60.0, max_age_s=600.0)
        await directory.refresh()
        async with open_house(tmp_path, access=Access(SystemClock(), directory=directory)) as house:
            await hears(directory, control, told(acme=SUSPENDED))
            await hears(directory, control, told(acme=CLOSED))
            await house.until(lambda: house.engine.dropped == [Flow("acme")])
            await hears(directory, control, told(is_whole=True, acme=CLOSED, beta=ACTIVE, gone=CLOSED))
            await hears(directory, control, told(is_whole=True, acme=CLOSED, beta=CLOSED, gone=CLOSED))
            await house.until(lambda: Flow("beta") in house.engine.dropped)
            assert house.engine.dropped == [Flow("acme"), Flow("beta")]

    asyncio.run(main())


def test_an_engine_that_is_gone_stops_no_refresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Sequence[Flow]] = []

    async def refused(self: EngineClient, flows: Sequence[Flow]) -> None:
        asked.append(flows)
        raise Unavailable("the engine is being started again")

    monkeypatch.setattr(EngineClient, "drop_grammars", refused)

    async def main() -> None:
        control = FakeControl(told(is_whole=True, acme=ACTIVE))
        directory = Directory(control, SystemClock(), poll_s=60.0, max_age_s=600.0)
        await directory.refresh()
        async with open_house(tmp_path, access=Access(SystemClock(), directory=directory)) as house:
            await hears(directory, control, told(acme=CLOSED))
            await house.until(lambda: asked == [(Flow("acme"),)])
            await hears(directory, control, told(acme=CLOSED))
            assert len(asked) == 1

    asyncio.run(main())
