"""/v1/responses: replies, streams, kept conversations, and refusals by the field's name."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock
from tests.server.batches.batch_house import BatchHouse, batch_house, line
from tests.server.fake_engine import MAX_MODEL_LEN


async def respond(house: BatchHouse, asked: object = "SAY:hello", **more: Any) -> dict[str, Any]:
    reply = await house.client.post("/v1/responses", json={"model": "", "input": asked, **more})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def text_of(response: dict[str, Any]) -> str:
    (message,) = response["output"]
    (part,) = message["content"]
    assert (message["type"], message["role"], part["type"]) == ("message", "assistant", "output_text")
    return str(part["text"])


def prompt_of(house: BatchHouse) -> str:
    return house.engine._tokenizer.decode(house.engine.submitted[-1].tokens, skip_special_tokens=True)


def test_a_response_has_the_text_and_the_usage(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            response = await respond(house, metadata={"a": "b"}, temperature=0, top_p=0.5, max_output_tokens=50)
            assert text_of(response) == "hello"
            assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
            assert response["metadata"] == {"a": "b"}
            assert (response["temperature"], response["top_p"], response["max_output_tokens"]) == (0, 0.5, 50)
            usage, (record,) = response["usage"], await house.shipped()
            assert (usage["input_tokens"], usage["output_tokens"]) == (record.prompt_tokens, record.completion_tokens)
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
            sampling = house.engine.submitted[-1].sampling
            assert (sampling.temperature, sampling.top_p) == (0, 0.5)

    asyncio.run(scenario())


def test_a_response_cut_by_its_budget_is_incomplete(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            response = await respond(house, max_output_tokens=3)
            assert (response["status"], text_of(response)) == ("incomplete", "hel")
            assert response["incomplete_details"] == {"reason": "max_output_tokens"}

    asyncio.run(scenario())


def test_items_and_instructions_become_messages(tmp_path: Path) -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "b", "annotations": [], "logprobs": []}],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "c"}, {"type": "input_text", "text": "d"}]},
    ]

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            await respond(house, items, instructions="obey")
            assert prompt_of(house) == "system\nobeysystem\nbe briefuser\naassistant\nbuser\ncd"

    asyncio.run(scenario())


def test_a_response_continues_the_one_before_without_its_instructions(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            first = await respond(house, "SAY:one", instructions="obey")
            second = await respond(house, "and", previous_response_id=first["id"], instructions="now")
            assert prompt_of(house) == "system\nnowuser\nSAY:oneassistant\noneuser\nand"
            assert second["previous_response_id"] == first["id"]
            found = await house.client.get(f"/v1/responses/{first['id']}")
            assert found.json() == first
            gone = await house.client.delete(f"/v1/responses/{first['id']}")
            assert gone.json() == {"id": first["id"], "object": "response", "deleted": True}
            for reply in (
                await house.client.get(f"/v1/responses/{first['id']}"),
                await house.client.delete(f"/v1/responses/{first['id']}"),
                await house.client.post("/v1/responses", json={"input": "x", "previous_response_id": first["id"]}),
            ):
                assert reply.status_code == 404

    asyncio.run(scenario())


def test_a_stream_has_openai_s_events_in_their_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            body = {"model": "", "input": "SAY:héllo", "stream": True}
            reply = await house.client.post("/v1/responses", json=body)
            assert reply.headers["content-type"].startswith("text/event-stream")
            heads, events = [], []
            for block in reply.text.strip().split("\n\n"):
                head, data = block.split("\n")
                heads.append(head.removeprefix("event: "))
                events.append(json.loads(data.removeprefix("data: ")))
            assert heads == [event["type"] for event in events]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            deltas = [event for event in events if event["type"] == "response.output_text.delta"]
            assert "".join(event["delta"] for event in deltas) == "héllo"
            assert list(dict.fromkeys(heads)) == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.completed",
            ]
            last = events[-1]["response"]
            assert text_of(last) == "héllo"
            assert {event["item_id"] for event in events if "item_id" in event} == {last["output"][0]["id"]}
            assert (await house.client.get(f"/v1/responses/{last['id']}")).json() == last

    asyncio.run(scenario())


WEATHER = {"type": "function", "name": "get", "parameters": {"type": "object", "properties": {"city": {}}}}
CALLS = 'Let me look.\n<tool_call>\n{"name": "get", "arguments": {"city": "Ås"}}\n</tool_call>'


def test_a_call_of_a_function_and_its_output_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            first = await respond(house, f"SAY:{CALLS}", tools=[WEATHER], max_output_tokens=150)
            message, call = first["output"]
            assert message["content"][0]["text"] == "Let me look."
            assert (call["type"], call["name"], call["arguments"]) == ("function_call", "get", '{"city": "Ås"}')
            assert first["status"] == call["status"] == "completed"
            assert first["tools"] == [WEATHER]
            output = [{"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}]
            await respond(house, output, previous_response_id=first["id"], tools=[WEATHER])
            prompt = prompt_of(house)
            assert call["call_id"] in prompt
            assert prompt.endswith("tool\nrain")
            given = [{"type": "message", "role": "user", "content": "a"}, call, *output]
            await respond(house, given, tools=[WEATHER], tool_choice="auto", parallel_tool_calls=False)
            assert prompt_of(house).endswith("tool\nrain")

    asyncio.run(scenario())


def test_a_stream_tells_of_calls_in_their_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            body = {"model": "", "input": f"SAY:{CALLS}", "tools": [WEATHER], "stream": True}
            reply = await house.client.post("/v1/responses", json=body)
            events = [json.loads(part.split("data: ")[1]) for part in reply.text.strip().split("\n\n")]
            assert [event["sequence_number"] for event in events] == list(range(len(events)))
            assert list(dict.fromkeys(event["type"] for event in events)) == [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.completed",
            ]
            call = events[-1]["response"]["output"][1]
            deltas = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
            assert "".join(event["delta"] for event in deltas) == call["arguments"] == '{"city": "Ås"}'
            assert {event["output_index"] for event in deltas} == {1}
            items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
            assert items == events[-1]["response"]["output"]

    asyncio.run(scenario())


def test_a_failure_within_a_stream_is_an_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            body = {"model": "", "input": "HOLD", "stream": True}
            stream = asyncio.create_task(house.client.post("/v1/responses", json=body))
            await house.runs()
            await house.client.post("/generate", json={"inputs": "CRASH"})
            text = (await stream).text
            assert "event: response.failed\n" in text
            assert '"status":"failed"' in text

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("changes", "parameter"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": [7]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "a", "role": "tool"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "a"}]}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": "a", "name": "b"}]}, "input[0].name"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 3}, "max_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 100_000}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": "yes"}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"conversation": ["conv_1"]}, "conversation"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "last"}, "truncation"),
        ({"truncation": True}, "truncation"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
        ({"text": {"format": 7}}, "text.format"),
        ({"metadata": {"a": 7}}, "metadata.a"),
    ],
)
def test_a_field_that_is_wrong_or_not_implemented_is_refused_by_its_name(
    tmp_path: Path, changes: dict[str, Any], parameter: str
) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            reply = await house.client.post("/v1/responses", json={"model": "", "input": "x", **changes})
            assert reply.status_code == 400, reply.text
            assert reply.json()["error"]["param"] == parameter

    asyncio.run(scenario())


def test_a_schema_is_the_form_of_the_text(tmp_path: Path) -> None:
    shape = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    given = {"type": "json_schema", "name": "shape", "schema": shape, "strict": True}

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            response = await respond(house, text={"format": given})
            assert response["text"] == {"format": given}
            assert house.engine.submitted[-1].grammar is not None
            body = {"input": "x", "text": {"format": {**given, "schema": 7}}}
            reply = await house.client.post("/v1/responses", json=body)
            assert reply.status_code == 400
            assert "text.format" in reply.json()["error"]["message"]

    asyncio.run(scenario())


def test_truncation_drops_the_oldest_turns_and_never_the_instructions(tmp_path: Path) -> None:
    turns = [
        {"role": role, "content": f"{name}{number:03d} " + "x" * 30}
        for number in range(200)
        for role, name in (("user", "U"), ("assistant", "A"))
    ]
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "done"}
    items = [*turns, {"role": "user", "content": "SAY:last"}, call, output]
    asked: dict[str, Any] = {"instructions": "obey", "truncation": "auto"}

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            refused = await house.client.post("/v1/responses", json={"input": items, "instructions": "obey"})
            assert refused.json()["error"]["code"] == "context_length_exceeded"
            response = await respond(house, items, **asked)
            prompt = prompt_of(house)
            assert response["truncation"] == "auto"
            assert prompt.startswith("system\nobeyuser\nU")
            assert prompt.endswith("done")
            kept = len(house.engine.submitted[-1].tokens)
            short = await respond(house, items, **asked, max_output_tokens=MAX_MODEL_LEN - kept + 1)
            assert short["status"] in ("completed", "incomplete")
            assert len(house.engine.submitted[-1].tokens) < kept
            shorter = prompt_of(house)
            assert prompt.removeprefix("system\nobey").endswith(shorter.removeprefix("system\nobey"))
            first = int(shorter.partition("U")[2][:3])
            assert first == int(prompt.partition("U")[2][:3]) + 1, "one turn more, and no more than that"
            whole = await respond(house, "SAY:hello", **asked)
            assert text_of(whole) == "hello"
            too_long = await house.client.post("/v1/responses", json={"input": "y" * MAX_MODEL_LEN, **asked})
            assert too_long.json()["error"]["code"] == "context_length_exceeded"

    asyncio.run(scenario())


def test_fields_that_ask_for_nothing_are_accepted(tmp_path: Path) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "truncation": "disabled",
        "background": False,
        "include": [],
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "user": "me",
        "reasoning": None,
    }

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            assert text_of(await respond(house, **neutral)) == "hello"

    asyncio.run(scenario())


def test_responses_are_kept_for_a_time_and_a_number_the_newest_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        settings: dict[str, Any] = {"responses_s": 100.0, "tenant_responses": 2}
        async with batch_house(tmp_path, clock=clock, storage=settings) as house:
            made = [(await respond(house))["id"] for _ in range(3)]
            await house.sent()
            unkept = await respond(house, store=False)
            assert unkept["store"] is False

            async def statuses() -> list[int]:
                found = [await house.client.get(f"/v1/responses/{each}") for each in (*made, unkept["id"])]
                return [reply.status_code for reply in found]

            assert await statuses() == [404, 200, 200, 404]
            clock.advance(101)
            assert await statuses() == [404] * 4
            await house.plane.sweep()
            assert house.plane.blobs() == []

    asyncio.run(scenario())


def test_a_response_is_found_after_a_restart_and_by_its_tenant_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        async with batch_house(tmp_path, clock=clock) as house:
            response = await respond(house)
        clock.advance(10)
        async with batch_house(tmp_path, clock=clock) as house:
            path = f"/v1/responses/{response['id']}"
            assert (await house.client.get(path)).json() == response
            other = "/other/deployments/v2/llms/tiny"
            assert (await house.client.get(other + path)).status_code == 404
            assert (await house.client.delete(other + path)).status_code == 404

    asyncio.run(scenario())


def test_a_batch_of_responses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            asked = {**line("a"), "url": "/v1/responses", "body": {"model": "", "input": "SAY:yes"}}
            batch = await house.until(await house.create([asked], url="/v1/responses"))
            (result,) = (await house.results(batch["output_file_id"])).values()
            assert text_of(result["response"]["body"]) == "yes"

    asyncio.run(scenario())
