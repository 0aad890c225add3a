"""The size of a shipment of records: it fits the control plane's speed, and no record is lost or sent for nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from manylora.errors import ControlUnavailable
from manylora.server.metering import meter as meter_module
from manylora.server.metering.meter import Meter
from manylora.usage import UsageRecord
from tests.server.fake_control import FakeControl
from tests.server.metering.frames import request
from tests.server.metering.test_metering import ended, meter_in, opened

LARGEST = 40


@pytest.fixture(autouse=True)
def small_shipments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "SHIPMENT", LARGEST)


class Slow(FakeControl):
    """A control plane whose answer to more than `most` records comes too late."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        self.sizes.append(len(records))
        if len(records) > self.most:
            raise ControlUnavailable("the control plane does not answer (ReadTimeout)")
        await super().ship(records)


async def filled(folder: Path, count: int) -> Meter:
    meter = meter_in(folder)
    await meter.recovered()
    for number in range(count):
        each = request(f"r{number}")
        usage = opened(meter, each)
        ended(meter, each, 1)
        await meter.settle(usage)
    return meter


async def tried(meter: Meter, control: FakeControl, times: int) -> None:
    for _ in range(times):
        try:
            await meter.ship(control)
        except ControlUnavailable:
            continue


@pytest.mark.parametrize("most", [1, 7])
def test_a_slow_control_plane_gets_shipments_that_it_can_take(tmp_path: Path, most: int) -> None:
    async def scenario() -> None:
        meter, control = await filled(tmp_path, LARGEST + 5), Slow(most)
        await tried(meter, control, 2 * LARGEST + 20)
        assert len(control.records) == LARGEST + 5
        assert control.sizes[:3] == [LARGEST, LARGEST // 2, LARGEST // 4]
        late = sum(size > most for size in control.sizes)
        assert late <= len(control.sizes) // 2 + 3, control.sizes
        await meter.close()

    asyncio.run(scenario())


def test_a_failed_shipment_smaller_than_the_largest_is_halved_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        meter, control = await filled(tmp_path, 8), Slow(4)
        await tried(meter, control, 2)
        assert control.sizes == [8, 4]
        await meter.close()

    asyncio.run(scenario())


def test_shipments_grow_back_to_the_largest_and_no_further(tmp_path: Path) -> None:
    async def scenario() -> None:
        meter, control = await filled(tmp_path, 12 * LARGEST), Slow(LARGEST)
        control.is_away = True
        await tried(meter, control, 5)
        control.is_away = False
        while await meter.ship(control):
            pass
        assert len(control.records) == 12 * LARGEST
        taken = control.sizes[5:-1]  # the last one is what is left
        assert taken[0] == 1
        assert taken == sorted(taken)
        assert max(taken) == LARGEST
        assert control.sizes[:5] == [40, 20, 10, 5, 2]
        await meter.close()

    asyncio.run(scenario())
