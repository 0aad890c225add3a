"""/v1/conversations: their items, responses that continue them, their bounds, and changes at two servers."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from manylora.clock import ManualClock
from tests.server.batches.batch_house import BatchHouse, batch_house
from tests.server.batches.test_responses import prompt_of, respond
from tests.server.batches.test_two_edges import in_edges

ROOT = "/v1/conversations"
HELLO = {"type": "message", "role": "user", "content": "SAY:hello"}


def in_house(folder: Path, scenario: Callable[[BatchHouse], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with batch_house(folder, **options) as house:
            await scenario(house)

    asyncio.run(main())


async def make(house: BatchHouse, **body: Any) -> str:
    reply = await house.client.post(ROOT, json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


async def texts(house: BatchHouse, conversation: str, **query: Any) -> list[str]:
    reply = await house.client.get(f"{ROOT}/{conversation}/items", params={"order": "asc", **query})
    assert reply.status_code == 200, reply.text
    items = reply.json()["data"]
    return [item["content"][0]["text"] if item["type"] == "message" else item["type"] for item in items]


def test_a_conversation_is_made_shown_changed_and_deleted(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        made = (await house.client.post(ROOT, json={"metadata": {"a": "b"}, "items": [HELLO]})).json()
        assert made == {
            "id": made["id"],
            "object": "conversation",
            "created_at": made["created_at"],
            "metadata": {"a": "b"},
        }
        path = f"{ROOT}/{made['id']}"
        assert (await house.client.get(path)).json() == made
        changed = await house.client.post(path, json={"metadata": {"c": "d"}})
        assert changed.json() == {**made, "metadata": {"c": "d"}} == (await house.client.get(path)).json()
        assert (await house.client.get(path, headers={"x": "y"})).status_code == 200
        gone = await house.client.delete(path)
        assert gone.json() == {"id": made["id"], "object": "conversation.deleted", "deleted": True}
        for method in ("GET", "DELETE"):
            reply = await house.client.request(method, path)
            assert (reply.status_code, reply.json()["error"]["param"]) == (404, "conversation_id")
        assert house.plane.blobs() == []

    in_house(tmp_path, scenario)


def test_items_are_added_listed_shown_and_deleted(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "done"}

    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house, items=[HELLO])
        path = f"{ROOT}/{conversation}/items"
        added = (await house.client.post(path, json={"items": [call, output]})).json()
        assert [item["type"] for item in added["data"]] == ["function_call", "function_call_output"]
        assert added["data"][0]["name"] == "f"
        assert await texts(house, conversation) == ["SAY:hello", "function_call", "function_call_output"]
        listed = (await house.client.get(path)).json()
        assert listed["data"][:2] == added["data"][::-1], "the newest first"
        assert await texts(house, conversation, limit=1, after=listed["last_id"]) == ["function_call"]
        one = f"{path}/{added['first_id']}"
        assert (await house.client.get(one)).json() == added["data"][0]
        assert (await house.client.delete(one)).json()["object"] == "conversation"
        assert (await house.client.get(one)).json()["error"]["param"] == "item_id"
        assert (await house.client.delete(one)).status_code == 404
        assert await texts(house, conversation) == ["SAY:hello", "function_call_output"]

    in_house(tmp_path, scenario)


@pytest.mark.parametrize("form", ["id", "object"])
def test_a_response_goes_on_in_a_conversation(tmp_path: Path, form: str) -> None:
    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house, items=[{"role": "user", "content": "before"}])
        name: Any = conversation if form == "id" else {"id": conversation}
        response = await respond(house, "SAY:one", conversation=name, store=False)
        assert response["conversation"] == {"id": conversation}
        assert prompt_of(house) == "user\nbeforeuser\nSAY:one"
        async with house.client.stream(
            "POST", "/v1/responses", json={"input": "two", "conversation": name, "stream": True}
        ) as reply:
            assert b"response.completed" in await reply.aread()
        assert prompt_of(house) == "user\nbeforeuser\nSAY:oneassistant\noneuser\ntwo"
        found = await texts(house, conversation)
        assert (found[:4], len(found)) == (["before", "SAY:one", "one", "two"], 5)

    in_house(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "body", "parameter"),
    [
        (ROOT, {"items": 7}, "items"),
        (ROOT, {"items": [{"role": "king", "content": "a"}]}, "items[0]"),
        (ROOT, {"items": [HELLO] * 21}, "items"),
        (ROOT, {"metadata": {"a": 1}}, "metadata.a"),
        (ROOT, {"name": "a"}, "name"),
        (f"{ROOT}/conv_x", {}, "metadata"),
        (f"{ROOT}/conv_x/items", {"items": []}, "items"),
        ("/v1/responses", {"input": "a", "conversation": 7}, "conversation"),
        ("/v1/responses", {"input": "a", "conversation": {"id": 7}}, "conversation.id"),
        ("/v1/responses", {"input": "a", "conversation": "conv_x", "previous_response_id": "resp_x"}, "conversation"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(tmp_path: Path, path: str, body: dict[str, Any], parameter: str) -> None:
    async def scenario(house: BatchHouse) -> None:
        reply = await house.client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, parameter), reply.text

    in_house(tmp_path, scenario)


def test_an_unknown_conversation_and_another_tenants_are_not_found(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house)
        for named in ("conv_x", "a b", conversation):
            tenant = "/other/deployments/v2/llms/tiny"
            body = {"input": "x", "conversation": named}
            reply = await house.client.post(f"{tenant}/v1/responses", json=body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (404, "conversation")
        assert house.engine.submitted == []

    in_house(tmp_path, scenario)


def test_a_conversation_that_is_deleted_meanwhile_takes_no_reply_away(tmp_path: Path) -> None:
    async def scenario(house: BatchHouse) -> None:
        conversation = await make(house)
        asked = asyncio.create_task(respond(house, "WAIT", conversation=conversation))
        await house.runs()
        assert (await house.client.delete(f"{ROOT}/{conversation}")).status_code == 200
        for live in list(house.engine.live.values()):
            live.prompt = ""
        assert (await asked)["status"] == "completed"

    in_house(tmp_path, scenario)


def test_the_bounds_are_those_of_responses_and_name_the_setting(tmp_path: Path) -> None:
    clock = ManualClock()

    async def scenario(house: BatchHouse) -> None:
        first = await make(house)
        await make(house, items=[HELLO])
        for path, body, words in (
            (ROOT, {}, "storage.tenant_responses"),
            (f"{ROOT}/{first}/items", {"items": [{"role": "user", "content": "x" * 2000}]}, "tenant_response_bytes"),
        ):
            reply = await house.client.post(path, json=body)
            assert (reply.status_code, words in reply.text) == (403, True), reply.text
        clock.advance(1001)
        assert (await house.client.get(f"{ROOT}/{first}")).status_code == 404
        await house.plane.sweep()
        assert house.plane.blobs() == []

    limits = {"tenant_responses": 2, "tenant_response_bytes": 1500, "retention_s": 1000.0}
    in_house(tmp_path, scenario, clock=clock, storage=limits)


def test_changes_at_two_servers_are_all_there(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        conversation = await make(one)

        async def add(house: BatchHouse, text: str) -> httpx2.Response:
            items = [{"role": "user", "content": text}]
            return await house.client.post(f"{ROOT}/{conversation}/items", json={"items": items})

        replies = await asyncio.gather(*(add(house, f"{number}") for number in range(4) for house in (one, two)))
        assert {reply.status_code for reply in replies} <= {200, 409}
        told = [reply.json()["data"][0]["id"] for reply in replies if reply.status_code == 200]
        listed = (await two.client.get(f"{ROOT}/{conversation}/items")).json()["data"]
        assert sorted(item["id"] for item in listed) == sorted(told)
        assert told

    in_edges(tmp_path, scenario)
