"""Callers that follow background responses: one reader for all of them, and a bound on those of a tenant."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from manylora.server.routes.openai.responses import background, followers
from manylora.server.routes.openai.responses.background import BackgroundResponses
from manylora.server.routes.openai.responses.followers import Followers
from manylora.server.storage import responses
from tests.server.batches.batch_house import BatchHouse, soon, when
from tests.server.batches.test_two_edges import answer_held, in_edges
from tests.server.responses.test_background import in_house
from tests.server.responses.test_background_streams import ASKED, background_ids, rejoined


def followers_of(house: BatchHouse) -> Followers:
    assert house.app._response_routes is not None
    return house.app._response_routes._background.followers


def test_one_task_reads_a_response_for_all_that_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "BEAT_S", 0.01)
    monkeypatch.setattr(followers, "FOLLOW_S", 0.01)
    shown, readers, reads = BackgroundResponses.shown, set[Any](), list[str]()

    async def counted(self: BackgroundResponses, tenant: Any, response_id: str) -> Any:
        readers.add(asyncio.current_task())
        reads.append(response_id)
        return await shown(self, tenant, response_id)

    monkeypatch.setattr(BackgroundResponses, "shown", counted)

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        asked = asyncio.create_task(one.client.post("/v1/responses", json={**ASKED, "input": "WAIT"}))
        await one.runs()
        (response_id,) = background_ids(one)
        followed = [asyncio.create_task(rejoined(two, response_id)) for _ in range(5)]
        await when(lambda: soon(len(reads) > 10))
        answer_held(one)
        first, *others = await asyncio.gather(*followed)
        assert first[-1]["type"] == "response.completed"
        assert all(each == first for each in others)
        assert (len(readers), followers_of(two)._followed) == (1, {})
        await asked

    in_edges(tmp_path, scenario)


@pytest.mark.parametrize("end", ["leave", "delete"])
def test_the_reader_ends_with_its_followers_and_with_the_response(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(followers, "FOLLOW_S", 0.01)
    monkeypatch.setattr(responses, "MOST_QUESTIONS", 1)

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        asked = asyncio.create_task(one.client.post("/v1/responses", json={**ASKED, "input": "WAIT"}))
        await one.runs()
        (response_id,) = background_ids(one)
        path = f"/v1/responses/{response_id}"
        followed = asyncio.create_task(two.client.get(f"{path}?stream=true"))
        await when(lambda: soon(len(followers_of(two)._followed) == 1))
        (reading,) = [each.reading for each in followers_of(two)._followed.values()]
        if end == "leave":
            followed.cancel()
        else:
            assert (await one.client.delete(path)).status_code == 200
            assert "not found" in (await followed).text
        assert reading is not None
        await when(lambda: soon(reading.done() and not followers_of(two)._followed))
        await when(lambda: soon(not followers_of(two)._places))
        asked.cancel()

    in_edges(tmp_path, scenario)


def test_a_tenant_follows_a_bounded_number_of_streams(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        asked = asyncio.create_task(house.client.post("/v1/responses", json={**ASKED, "input": "WAIT"}))
        await house.runs()
        (response_id,) = background_ids(house)
        for reply in (
            await house.client.get(f"/v1/responses/{response_id}?stream=true"),
            await house.client.post("/v1/responses", json=ASKED),
        ):
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            assert "server.tenant_response_followers" in reply.text
            assert int(reply.headers["retry-after"]) >= 1
        assert background_ids(house) == [response_id], "a refused stream begins no response"
        answer_held(house)
        assert (await asked).status_code == 200
        assert (await rejoined(house, response_id))[-1]["type"] == "response.completed"

    in_house(tmp_path, scenario, server={"tenant_response_followers": 1})
