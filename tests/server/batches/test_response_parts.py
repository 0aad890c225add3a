"""Parts of /v1/responses on demand: the items of the input, log-probabilities, and fields that come back."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from manylora.server.generation.order import ChatPrompt
from tests.server.batches.batch_house import batch_house
from tests.server.batches.test_responses import WEATHER, respond, text_of

LOGPROBS = "message.output_text.logprobs"


def test_the_items_of_the_input_have_all_turns_in_pages(tmp_path: Path) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "get", "arguments": '{"city": "Ås"}'}
    asked = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "Weather?"},
        call,
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            first = await respond(house, asked, tools=[WEATHER], instructions="not an item")
            second = await respond(house, "SAY:two", previous_response_id=first["id"])
            path = f"/v1/responses/{second['id']}/input_items"
            whole = (await house.client.get(path, params={"order": "asc"})).json()
            shown = [{name: value for name, value in item.items() if name != "id"} for item in whole["data"]]
            said = {"type": "output_text", "text": text_of(first), "annotations": [], "logprobs": []}
            done = {"status": "completed"}
            assert shown == [
                {
                    **done,
                    "type": "message",
                    "role": "developer",
                    "content": [{"type": "input_text", "text": "be brief"}],
                },
                {**done, "type": "message", "role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {**done, **call},
                {**done, **asked[3]},
                {**done, "type": "message", "role": "assistant", "content": [said]},
                {**done, "type": "message", "role": "user", "content": [{"type": "input_text", "text": "SAY:two"}]},
            ]
            ids = [item["id"] for item in whole["data"]]
            assert len(set(ids)) == 6
            assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (ids[0], ids[-1], False)
            newest = (await house.client.get(path, params={"limit": "2"})).json()
            assert [item["id"] for item in newest["data"]] == ids[:-3:-1]
            assert newest["has_more"]
            rest = (await house.client.get(path, params={"after": ids[-2]})).json()
            assert [item["id"] for item in rest["data"]] == ids[-3::-1]
            for wrong in ({"limit": "0"}, {"limit": "101"}, {"after": "x"}, {"order": "up"}):
                assert (await house.client.get(path, params=wrong)).status_code == 400
            assert (await house.client.get("/v1/responses/resp_0/input_items")).status_code == 404

    asyncio.run(scenario())


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_text_has_its_tokens_with_log_probabilities_on_demand(tmp_path: Path, is_stream: bool) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            body = {"model": "", "input": "SAY:hé", "include": [LOGPROBS], "top_logprobs": 2, "stream": is_stream}
            reply = await house.client.post("/v1/responses", json=body)
            assert reply.status_code == 200, reply.text
            if is_stream:
                blocks = [block.split("\n")[1].removeprefix("data: ") for block in reply.text.strip().split("\n\n")]
                events = [json.loads(block) for block in blocks]
                deltas = [event for event in events if event["type"] == "response.output_text.delta"]
                response = events[-1]["response"]
                (done,) = [event for event in events if event["type"] == "response.output_text.done"]
                told = [entry for delta in deltas for entry in delta["logprobs"]]
                assert told == done["logprobs"] == response["output"][0]["content"][0]["logprobs"]
            else:
                response = reply.json()
            entries = response["output"][0]["content"][0]["logprobs"]
            assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "hé"
            assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] < 0 for entry in entries)
            assert response["top_logprobs"] == 2

    asyncio.run(scenario())


def test_fields_about_parts_that_no_response_has_come_back_or_pass(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            more: dict[str, Any] = {
                "max_tool_calls": 3,
                "include": ["reasoning.encrypted_content", "file_search_call.results"],
                "reasoning": {"effort": "none"},
                "prompt_cache_key": "k",
                "safety_identifier": "s",
                "truncation": "disabled",
                "background": False,
            }
            response = await respond(house, **more)
            assert (response["max_tool_calls"], response["top_logprobs"]) == (3, 0)
            assert response["output"][0]["content"][0]["logprobs"] == []

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"include": ["output.all"]}, "include"),
        ({"include": "all"}, "include"),
        ({"include": [LOGPROBS], "tools": [WEATHER]}, "include"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "include": [LOGPROBS]}, "top_logprobs"),
        ({"max_tool_calls": 0}, "max_tool_calls"),
    ],
)
def test_wrong_parts_are_refused_by_the_fields_name(tmp_path: Path, changes: dict[str, Any], parameter: str) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            reply = await house.client.post("/v1/responses", json={"model": "", "input": "x", **changes})
            assert reply.status_code == 400, reply.text
            assert reply.json()["error"]["param"] == parameter

    asyncio.run(scenario())


def test_the_shorter_forms_of_a_conversation_are_made_one_at_a_time() -> None:
    """A conversation of many turns has as many shorter forms, which would take memory in proportion to its square."""
    first, tool = {"role": "system", "content": ""}, {"role": "tool", "content": ""}
    turns = [{"role": role, "content": str(number)} for number in range(1000) for role in ("user", "assistant")]
    prompt = ChatPrompt(messages=(first, *turns), num_pinned=1)
    assert prompt.cuts == list(range(2, 2000, 2))
    assert prompt.without(1998).messages == (first, *turns[1998:])
    assert ChatPrompt(messages=(first, *turns)).cuts == []
    assert ChatPrompt(messages=(first, turns[1], tool, turns[1]), num_pinned=1).cuts == [2]
