"""The edge's copy of the control plane's facts: answers in the order of their calls."""

import asyncio
from collections.abc import Sequence

from manylora.clock import ManualClock
from manylora.errors import ControlUnavailable
from manylora.ids import TenantId
from manylora.server.access.directory import Directory
from manylora.tenancy import DELETED, AdapterAct, DeploymentFacts, Snapshot
from tests.server.fake_control import PEPPER, FakeControl


def snapshot(revision: int, starts: tuple[int, int] | None = None, **facts: int | str | tuple[str, ...]) -> Snapshot:
    told = {"name": "mine", "state": "ready", **facts}
    mine = DeploymentFacts(tenant=TenantId("acme"), base="tiny", **told)  # type: ignore[arg-type]  # by name
    return Snapshot(
        revision=revision,
        taken_ms=0,
        is_whole=False,
        pepper=PEPPER,
        deployments=(mine,),
        deployment_starts=starts,
    )


class SlowControl(FakeControl):
    """A control plane whose first answer takes longer than the second, unless the second call awaits it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    async def snapshot(self, since: int, epoch: str = "") -> Snapshot:
        self.calls += 1
        number = self.calls
        for _ in range(10 if number == 1 else 0):
            await asyncio.sleep(0)
        return snapshot(number, state="pending" if number == 1 else "ready")


def test_an_earlier_answer_replaces_no_later_one() -> None:
    async def scenario() -> None:
        directory = Directory(SlowControl(), ManualClock(), poll_s=1, max_age_s=600)
        await asyncio.gather(directory.refresh(), directory.refresh())
        found = directory.deployment("acme", "mine")
        assert found is not None
        assert found.state == "ready"

    asyncio.run(scenario())


def test_the_numbers_of_deployments_keep_the_starts_of_deleted_ones() -> None:
    async def scenario() -> None:
        control = FakeControl(snapshot(1, (9, 2), urls=("one", "two"), starting=1, draining=3))
        directory = Directory(control, ManualClock(), poll_s=1, max_age_s=600)
        await directory.refresh()
        assert directory.numbers() == {
            "manylora_deployment_replicas": {("starting",): 1, ("ready",): 2, ("draining",): 3},
            "manylora_deployment_starts": {(): 9},
            "manylora_deployment_failed_starts": {(): 2},
        }
        control.snapshot_ = snapshot(2, state=DELETED, draining=3)
        await directory.refresh()
        assert directory.numbers()["manylora_deployment_starts"] == {(): 9}
        assert directory.numbers()["manylora_deployment_replicas"][("draining",)] == 3
        assert directory.deployment("acme", "mine") is None

    asyncio.run(scenario())


def test_a_deleted_deployment_without_replicas_takes_no_room() -> None:
    async def scenario() -> None:
        control = FakeControl()
        directory = Directory(control, ManualClock(), poll_s=1, max_age_s=600)
        for number in range(50):
            for state in ("ready", DELETED):
                control.snapshot_ = snapshot(number, name=f"d{number}", state=state)
                await directory.refresh()
        assert len(directory._placed) == len(directory._deployments) == 0

    asyncio.run(scenario())


def act(adapter: str) -> AdapterAct:
    return AdapterAct(at_ms=0, actor=None, key=None, address=None, request_id="r", verb="pin", adapter=adapter)


class SlowForActs(FakeControl):
    """A control plane whose answer to more than three acts comes too late."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        self.sizes.append(len(acts))
        if len(acts) > 3:
            raise ControlUnavailable("the control plane does not answer (ReadTimeout)")
        await super().report_acts(acts)


def test_a_slow_control_plane_gets_reports_of_acts_that_it_can_take() -> None:
    async def scenario() -> None:
        control = SlowForActs()
        directory = Directory(control, ManualClock(), poll_s=1, max_age_s=600)
        control.is_away = True
        acts = [act(f"adapter-{number}") for number in range(40)]
        for each in acts:
            await directory.report_act(each)
        assert len(control.sizes) == 40
        control.is_away, control.sizes = False, []
        for _ in range(20):
            await directory.report_acts()
        assert control.acts == acts
        failed = [size for size in control.sizes if size > 3]
        assert len(failed) < len(control.sizes) / 2

    asyncio.run(scenario())
