"""Two edges of one control plane: one answer about files, batches and responses, and one edge for each batch."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.config.settings import Config
from tests.server.batches.batch_house import COMPLETIONS, BatchHouse, batch_house, jsonl, line, soon, when
from tests.server.batches.test_responses import prompt_of, respond
from tests.server.storing import storing_plane

Houses = tuple[BatchHouse, BatchHouse]


@asynccontextmanager
async def edges(folder: Path, clock: ManualClock, **groups: dict[str, Any]) -> AsyncIterator[Houses]:
    """Two servers, each with an engine, a meter and a ledger of its own, on one control plane."""
    config = Config()
    config = replace(
        config,
        storage=replace(config.storage, **groups.get("storage", {})),
        batches=replace(config.batches, **groups.get("batches", {})),
    )
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(storing_plane(folder / "control", config, clock))
        found = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            house = batch_house(folder / name, plane=plane, clock=clock, batches=groups.get("batches"))
            found.append(await stack.enter_async_context(house))
        yield found[0], found[1]


def in_edges(folder: Path, scenario: Callable[[BatchHouse, BatchHouse], Awaitable[None]], **groups: Any) -> None:
    async def main() -> None:
        async with edges(folder, ManualClock(), **groups) as (one, two):
            await scenario(one, two)

    asyncio.run(main())


def answer_held(house: BatchHouse) -> None:
    """Let the sequences of the prompt `WAIT` begin."""
    for live in list(house.engine.live.values()):
        live.prompt = ""


def test_a_file_of_one_edge_is_listed_read_and_deleted_at_the_other(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        content = jsonl([line(str(number)) for number in range(9_000)])  # several parts
        file_id = await one.upload(content)
        assert [each["id"] for each in (await two.client.get("/v1/files")).json()["data"]] == [file_id]
        assert (await two.client.get(f"/v1/files/{file_id}/content")).content == content
        assert (await two.client.delete(f"/v1/files/{file_id}")).status_code == 200
        assert (await one.client.get(f"/v1/files/{file_id}")).status_code == 404
        assert one.plane.blobs() == []

    in_edges(tmp_path, scenario)


@pytest.mark.parametrize("limit", [{"tenant_files": 1}, {"tenant_bytes": 300}])
def test_a_quota_holds_over_both_edges(tmp_path: Path, limit: dict[str, int]) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        await one.upload(b"x" * 200)
        form: dict[str, Any] = {"files": {"file": ("in.jsonl", b"x" * 200)}, "data": {"purpose": "batch"}}
        reply = await two.client.post("/v1/files", **form)
        assert (reply.status_code, reply.json()["error"]["code"]) == (403, "storage_limit_exceeded")

    in_edges(tmp_path, scenario, storage=limit)


def test_a_batch_is_read_listed_and_cancelled_at_either_edge(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        batch_id = await one.create([line("held", "WAIT"), line("b")], url=COMPLETIONS)
        await when(lambda: soon(bool(one.engine.live or two.engine.live)))
        assert (await two.until(batch_id, "in_progress"))["request_counts"]["total"] == 2
        assert [each["id"] for each in (await two.client.get("/v1/batches")).json()["data"]] == [batch_id]
        for house in (two, one):
            reply = await house.client.post(f"/v1/batches/{batch_id}/cancel")
            assert reply.json()["status"] == "cancelling"
        runner = one if one.engine.live else two
        await when(lambda: soon(runner.runner._jobs[batch_id].batch.status == "cancelling"))
        runner.runner._jobs[batch_id].abort()
        ended = await two.until(batch_id)
        assert ended == await one.batch(batch_id)
        assert ended["status"] == "cancelled"

    in_edges(tmp_path, scenario)


def test_an_edge_that_is_late_writes_no_result_and_charges_none(tmp_path: Path) -> None:
    """The first edge stands still while its lease ends: the other one has the batch, and both answer the held line."""

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        assert two.runner._looks is not None
        two.runner._looks.cancel()
        batch_id = await one.create([line("held", "WAIT"), *(line(str(number)) for number in range(3))])
        await one.has_results(batch_id, 3)
        assert one.runner._looks is not None
        one.runner._looks.cancel()
        clock = one.plane.control.clock
        assert isinstance(clock, ManualClock)
        await two.runner.look()
        assert not two.runner._jobs, "the lease lasts"
        clock.advance(31)
        await two.runner.look()
        await when(lambda: soon(len(two.engine.live) == 1))
        assert len(two.engine.submitted) == 1, "a line with a result ran again"
        answer_held(one)
        await when(lambda: soon(not one.runner._jobs))
        answer_held(two)
        batch = await two.until(batch_id)
        assert batch["request_counts"] == {"total": 4, "completed": 4, "failed": 0}
        results = await two.results(batch["output_file_id"])
        charged = [each for house in (one, two) for each in await house.shipped() if each.charged_completion_tokens]
        assert sorted(each.request_id for each in charged) == sorted(
            each["response"]["request_id"] for each in results.values()
        )

    in_edges(tmp_path, scenario)


def test_a_conversation_goes_on_over_both_edges(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        first = await respond(one, "SAY:one")
        second = await respond(two, "SAY:two", previous_response_id=first["id"])
        third = await respond(one, "SAY:three", previous_response_id=second["id"])
        await one.sent()
        assert (await two.client.get(f"/v1/responses/{third['id']}")).json() == third
        assert all(said in prompt_of(one) for said in ("SAY:one", "SAY:two", "SAY:three"))
        assert (await two.client.delete(f"/v1/responses/{first['id']}")).status_code == 200
        one.plane.control.clock.advance(10)  # type: ignore[attr-defined]  # a manual clock
        assert (await one.client.get(f"/v1/responses/{first['id']}")).status_code == 404

    in_edges(tmp_path, scenario)


def test_without_the_control_plane_replies_go_on_and_their_responses_come_later(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        one.plane.is_away = True
        first = await respond(one, "SAY:one", store=True)
        second = await respond(one, "SAY:two", previous_response_id=first["id"])  # the same edge has it in memory
        body = {"model": "", "input": "x", "previous_response_id": second["id"]}
        refused = await two.client.post("/v1/responses", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "control_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        one.plane.is_away = False
        await one.sent()
        await respond(two, "SAY:three", previous_response_id=second["id"])
        assert all(said in prompt_of(two) for said in ("SAY:one", "SAY:two", "SAY:three"))

    in_edges(tmp_path, scenario)


def test_without_the_control_plane_files_and_batches_are_refused_for_now(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        file_id = await one.upload(b"{}")
        one.plane.is_away = True
        for path in ("/v1/files", f"/v1/files/{file_id}", f"/v1/files/{file_id}/content", "/v1/batches"):
            reply = await two.client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "control_unavailable")
            assert "retry-after" in reply.headers
        one.plane.is_away = False

    in_edges(tmp_path, scenario)


def test_everything_of_a_closed_tenant_is_gone_at_both_edges(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        batch_id = await one.create([line("held", "WAIT")])
        response = await respond(two)
        await two.sent()
        await one.plane.close_tenant("default")
        await one.plane.sweep()
        one.plane.control.clock.advance(10)  # type: ignore[attr-defined]  # a manual clock
        for house in (one, two):
            assert (await house.client.get("/v1/files")).json()["data"] == []
            assert (await house.client.get(f"/v1/batches/{batch_id}")).status_code == 404
            assert (await house.client.get(f"/v1/responses/{response['id']}")).status_code == 404
            await when(lambda house=house: soon(not house.engine.live))  # type: ignore[misc]  # a loop's own value
        assert one.plane.blobs() == []

    in_edges(tmp_path, scenario)
