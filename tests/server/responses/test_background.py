"""Responses with `background`: queued, run and ended at any server, cancelled, and lost with a killed one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.server.routes.openai.responses import background
from tests.server.batches.batch_house import BatchHouse, batch_house, when
from tests.server.batches.test_responses import respond
from tests.server.batches.test_two_edges import answer_held, in_edges


async def found(house: BatchHouse, response_id: str) -> dict[str, Any]:
    reply = await house.client.get(f"/v1/responses/{response_id}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def until(house: BatchHouse, response_id: str, status: str) -> dict[str, Any]:
    async def holds() -> bool:
        return bool((await found(house, response_id))["status"] == status)

    await when(holds)
    return await found(house, response_id)


def in_house(folder: Path, scenario: Callable[[BatchHouse], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with batch_house(folder, **options) as house:
            await scenario(house)

    asyncio.run(main())


def test_a_queued_response_is_seen_at_both_servers_until_its_end(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        queued = await respond(one, "WAIT", background=True)
        assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
        await until(two, queued["id"], "in_progress")
        before = await two.client.post("/v1/responses", json={"input": "x", "previous_response_id": queued["id"]})
        assert before.json()["error"]["param"] == "previous_response_id"
        await one.runs()
        answer_held(one)
        ended = await until(two, queued["id"], "completed")
        assert ended == await found(one, queued["id"])
        assert (ended["created_at"], ended["background"]) == (queued["created_at"], True)
        assert ended["usage"]["total_tokens"] > 0
        assert [record.completion_tokens > 0 for record in await one.shipped()] == [True]
        items = (await two.client.get(f"/v1/responses/{queued['id']}/input_items")).json()["data"]
        assert [item["content"][0]["text"] for item in items] == ["WAIT"]

    in_edges(tmp_path, scenario)


def test_a_response_is_cancelled_at_another_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BEAT_S", 0.01)

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        response_id = (await respond(one, "WAIT", background=True))["id"]
        await one.runs()
        for house in (two, one):
            reply = await house.client.post(f"/v1/responses/{response_id}/cancel")
            assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")

        async def is_aborted() -> bool:
            return not one.engine.live

        await when(is_aborted)
        assert (await found(one, response_id))["status"] == "cancelled"
        whole = await respond(one)
        reply = await one.client.post(f"/v1/responses/{whole['id']}/cancel")
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_id")

    in_edges(tmp_path, scenario)


def test_a_response_has_failed_once_its_server_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "STOP_S", 0.0)
    clock = ManualClock()

    async def killed(house: BatchHouse) -> None:
        told.append((await respond(house, "WAIT", background=True))["id"])
        await until(house, told[0], "in_progress")
        house.plane.is_away = True  # as for a killed server, nothing is noted any more

    async def restarted(house: BatchHouse) -> None:
        house.plane.is_away = False
        assert (await found(house, told[0]))["status"] == "in_progress"
        clock.advance(61)
        lost = await found(house, told[0])
        assert (lost["status"], lost["error"]["code"]) == ("failed", "server_error")
        assert await found(house, told[0]) == lost

    told: list[str] = []
    in_house(tmp_path, killed, clock=clock, is_killed=True)
    in_house(tmp_path, restarted, clock=clock)


def test_a_failure_is_told_in_the_response(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        response_id = (await respond(house, "x" * 100_000, background=True))["id"]
        failed = await until(house, response_id, "failed")
        assert "tokens" in failed["error"]["message"]
        deleted = (await respond(house, "WAIT", background=True))["id"]
        await house.runs()
        assert (await house.client.delete(f"/v1/responses/{deleted}")).status_code == 200

    in_house(tmp_path, scenario)


def test_background_needs_store(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        reply = await house.client.post("/v1/responses", json={"input": "x", "background": True, "store": False})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "background")
        assert "store" in reply.json()["error"]["message"]

    in_house(tmp_path, scenario)
