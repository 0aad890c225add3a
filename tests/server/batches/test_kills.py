"""A kill of the server loses no line of a batch, gives none two results, and charges each result once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.server.batches.batch_house import batch_house, line
from tests.server.fake_control import FakeControl


async def begun(folder: Path, control: FakeControl, lines: list[dict[str, object]], results: int) -> str:
    """A batch that a kill ends with at least so many results."""
    async with batch_house(folder, control=control, is_killed=True, batches={"lines_at_once": 2}) as house:
        batch_id = await house.create(lines)
        await house.has_results(batch_id, results)
        await house.shipped()
    return batch_id


@pytest.mark.long
def test_after_a_kill_every_line_has_one_result_and_is_charged_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        control = FakeControl()
        lines = [line(str(number), f"SAY:{number}") for number in range(40)]
        batch_id = await begun(tmp_path, control, lines, 5)
        async with batch_house(tmp_path, control=control) as house:
            batch = await house.until(batch_id)
            assert batch["status"] == "completed"
            good = await house.results(batch["output_file_id"])
            assert {each: good[each]["response"]["body"]["choices"][0]["text"] for each in good} == {
                str(number): str(number) for number in range(40)
            }
            assert len(house.engine.submitted) <= 35
            charged = Counter(record.request_id for record in await house.shipped() if record.charged_completion_tokens)
            assert charged == Counter(each["response"]["request_id"] for each in good.values())

    asyncio.run(scenario())


def test_a_kill_between_a_result_and_its_usage_charges_the_result(tmp_path: Path) -> None:
    """The meter loses all that it has not written; the results are on the disk."""

    async def scenario() -> None:
        control = FakeControl()
        async with batch_house(tmp_path, control=control, is_killed=True) as house:
            spool = house.meter._spool
            spool._is_closing = True  # its thread ends: no record reaches the disk
            spool._wake.set()
            spool._writer.join()
            batch_id = await house.create([line("a"), line("b")])
            await house.has_results(batch_id, 2)
        async with batch_house(tmp_path, control=control) as house:
            batch = await house.until(batch_id)
            good = await house.results(batch["output_file_id"])
            assert not house.engine.submitted, "a line with a result ran again"
            records = await house.shipped()
            assert {record.request_id for record in records} == {
                each["response"]["request_id"] for each in good.values()
            }
            for record in records:
                assert record.charged_completion_tokens == record.completion_tokens > 0
                assert record.finish_reason == "end_of_sequence"

    asyncio.run(scenario())


def _tear(folder: Path) -> None:
    """Leave a part of a further result, as a kill of the control plane in the middle of an append does."""
    blobs = (folder / "control" / "storage" / "blobs").glob("*/default/*")
    (output,) = (path for path in blobs if b"choices" in path.read_bytes())
    output.write_bytes(output.read_bytes() + output.read_bytes()[:70])


def test_a_torn_result_is_no_result(tmp_path: Path) -> None:
    async def scenario() -> None:
        control = FakeControl()
        lines = [line(str(number)) for number in range(4)] + [line("held", "WAIT")]
        batch_id = await begun(tmp_path, control, lines, 4)
        _tear(tmp_path)
        async with batch_house(tmp_path, control=control) as house:
            await house.runs()
            await house.client.post(f"/v1/batches/{batch_id}/cancel")
            house.runner._jobs[batch_id].abort()
            good = await house.results((await house.until(batch_id))["output_file_id"])
            assert sorted(good) == list("0123")
            assert len(house.engine.submitted) == 1, "a line with a result ran again"

    asyncio.run(scenario())


@pytest.mark.long
def test_a_server_that_ends_in_order_leaves_lines_to_the_next_at_no_cost(tmp_path: Path) -> None:
    async def scenario() -> None:
        control = FakeControl()
        async with batch_house(tmp_path, control=control) as house:
            batch_id = await house.create([line("held", "WAIT")])
            await house.runs()
        assert [record.charged_completion_tokens for record in control.records.values()] == [0]
        async with batch_house(tmp_path, control=control) as house:
            assert (await house.until(batch_id, "in_progress"))["request_counts"]["total"] == 1

    asyncio.run(scenario())
