"""Batches and their lines in `/metrics`."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path

from tests.server.batches.batch_house import BatchHouse, batch_house, line, when


async def numbers(house: BatchHouse) -> dict[str, float]:
    """The values of the metrics of batches that are not 0, by name and label."""
    text = (await house.client.get("/metrics")).text
    found = re.findall(r"^manylora_(batch\w*)\{\w+=\"(\w+)\"\} (\S+)$", text, re.MULTILINE)
    return {f"{name} {label}": float(value) for name, label, value in found if float(value)}


async def shows(house: BatchHouse, expected: Mapping[str, float], *, but: str = "") -> None:
    """Wait until the metrics have these values; the states of batches are those of the last look."""
    wanted = {name: value for name, value in expected.items() if name != but}

    async def is_shown() -> bool:
        return await numbers(house) == wanted

    await when(is_shown)


def test_lines_are_queued_run_and_get_results(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path, batches={"lines_at_once": 2}) as house:
            assert await numbers(house) == {}
            await house.until(await house.create([line("a"), line("b", temperature=-1)]))
            done = {"batch_lines_finished completed": 1, "batch_lines_finished failed": 1, "batches completed": 1}
            await shows(house, done)
            held = await house.create([line(str(number), "HOLD") for number in range(5)])
            await house.runs(2)
            under_way = {"batches in_progress": 1, "batch_lines running": 2, "batch_lines queued": 3}
            await shows(house, done | under_way)
            await house.client.post(f"/v1/batches/{held}/cancel")
            await shows(house, {**done, **under_way, "batches cancelling": 1}, but="batches in_progress")

    asyncio.run(scenario())
