"""Tools on POST /v1/chat/completions: requests, whole replies and streams, as a client sees them."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from manylora.errors import ToolsRefused
from tests.server.conftest import House

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "get", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "strict": True}},
]
CALLS = (
    'Let me look.\n<tool_call>\n{"name": "get", "arguments": {"city": "Ås"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
)


def said(text: str) -> list[dict[str, Any]]:
    """The messages of a prompt to which the engine replies with a text."""
    return [{"role": "user", "content": f"SAY:{text}"}]


def chunks(reply: httpx2.Response) -> list[dict[str, Any]]:
    events = reply.content.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


async def ask(house: House, **fields: Any) -> httpx2.Response:
    reply = await house.post(CHAT, {"tools": TOOLS, "max_tokens": 150, **fields})
    assert reply.status_code == 200, reply.text
    return reply


def grammar_text(house: House) -> str:
    grammar = house.engine.submitted[-1].grammar
    assert grammar is not None
    return grammar.text


def test_a_whole_reply_has_its_calls(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        (choice,) = (await ask(house, messages=said(CALLS))).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert message["content"] == "Let me look."
        first, second = message["tool_calls"]
        assert first["function"] == {"name": "get", "arguments": '{"city": "Ås"}'}
        assert (second["type"], second["function"]) == ("function", {"name": "now", "arguments": "{}"})
        assert first["id"].startswith("call_")
        assert first["id"] != second["id"]
        (alone,) = (await ask(house, messages=said(CALLS.partition("\n")[2]))).json()["choices"]
        assert alone["message"]["content"] is None
        (plain,) = (await ask(house, messages=said("It rains. <b>"))).json()["choices"]
        assert plain["message"] == {"role": "assistant", "content": "It rains. <b>", "refusal": None}
        assert plain["finish_reason"] == "stop"

    in_house(scenario)


def test_a_stream_has_openai_s_deltas(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        found = chunks(await ask(house, messages=said(CALLS), stream=True))
        deltas = [chunk["choices"][0]["delta"] for chunk in found]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert deltas[-1] == {}
        assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert all(chunk["choices"][0]["finish_reason"] is None for chunk in found[:-1])
        assert "".join(delta.get("content") or "" for delta in deltas) == "Let me look."
        pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
        starts = [piece for piece in pieces if "id" in piece]
        assert [(piece["index"], piece["type"]) for piece in starts] == [(0, "function"), (1, "function")]
        assert [piece["function"] for piece in starts] == [
            {"name": "get", "arguments": ""},
            {"name": "now", "arguments": ""},
        ]
        rest = [piece for piece in pieces if "id" not in piece]
        assert all(piece.keys() == {"index", "function"} for piece in rest)
        assert all(piece["function"].keys() == {"arguments"} for piece in rest)
        texts = ["".join(piece["function"]["arguments"] for piece in rest if piece["index"] == at) for at in (0, 1)]
        assert texts == ['{"city": "Ås"}', "{}"]

    in_house(scenario)


def test_each_token_of_a_stream_with_tools_is_listed_once(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        asked = {"messages": said(CALLS), "logprobs": True, "seed": 1}
        found = chunks(await ask(house, **asked, stream=True))
        listed = [entry for chunk in found for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", ())]
        assert b"".join(bytes(entry["bytes"]) for entry in listed).decode() == CALLS
        (whole,) = (await ask(house, **asked)).json()["choices"]
        assert whole["logprobs"]["content"] == listed

    in_house(scenario)


def test_a_call_cut_by_the_budget_ends_for_its_length(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        (choice,) = (await ask(house, messages=said(CALLS), max_tokens=58)).json()["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["tool_calls"][0]["function"]["arguments"].startswith('{"ci')

    in_house(scenario)


def test_a_named_function_and_a_single_call_bind_the_reply(in_house: InHouse) -> None:
    """The fake engine obeys no grammar, so that the names show that a call of another tool is none."""

    async def scenario(house: House) -> None:
        for choice in ({"type": "function", "function": {"name": "now"}}, "now"):
            message = (await ask(house, messages=said(CALLS), tool_choice=choice)).json()["choices"][0]["message"]
            assert [call["function"]["name"] for call in message["tool_calls"]] == ["now"]
            assert "get" not in grammar_text(house)
        await ask(house, messages=said(CALLS), tool_choice="required")
        assert "start: opened calls" in grammar_text(house)
        one = (await ask(house, messages=said(CALLS), parallel_tool_calls=False)).json()["choices"][0]["message"]
        assert len(one["tool_calls"]) == 1
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOLS[1]]}}
        some = (await ask(house, messages=said(CALLS), tool_choice=allowed)).json()["choices"][0]["message"]
        assert [call["function"]["name"] for call in some["tool_calls"]] == ["now"]

    in_house(scenario)


def test_without_a_choice_of_tools_the_prompt_shows_none(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        message = (await ask(house, messages=said(CALLS), tool_choice="none")).json()["choices"][0]["message"]
        assert message["content"] == CALLS
        bare = len(house.engine.submitted[-1].tokens)
        assert house.engine.submitted[-1].grammar is None
        await ask(house, messages=said(CALLS))
        shown = bytes(token for token in house.engine.submitted[-1].tokens[:-bare] if token < 256).decode()
        assert json.loads(shown.removeprefix("<tool_call>"))[1] == {"type": "function", "function": {"name": "now"}}

    in_house(scenario)


def test_the_template_shows_calls_and_their_results(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "x"}'}}
        messages = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
        ]
        await ask(house, messages=messages, max_tokens=4)
        text = bytes(token for token in house.engine.submitted[-1].tokens if token < 256).decode()
        assert '"function": {"name": "now", "arguments": {"zone": "x"}}' in text
        assert text.endswith("tool\nnoon")

    in_house(scenario)


FUNCTION = TOOLS[1]["function"]
WRONG = [
    ({"tools": {}}, "tools"),
    ({"tools": [1]}, "`tools[0]`: expected an object, given an integer"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "`custom`"),
    ({"tools": [{"type": "retrieval"}]}, "`tools[0].type` must be function"),
    ({"tools": [{"type": "function"}]}, "`tools[0].function`: expected an object, given null"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "must have 1 to 64 letters"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "must have 1 to 64 letters"),
    (
        {"tools": [{"type": "function", "function": {**FUNCTION, "parameterz": {}}}]},
        "`parameterz` is not",
    ),
    ({"tools": [{"type": "function", "function": {**FUNCTION, "parameters": {"type": "string"}}}]}, "`type` object"),
    ({"tools": [{"type": "function", "function": {**FUNCTION, "parameters": {"not": {}}}}]}, "cannot be enforced"),
    ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": "yes"}}]}, "expected a boolean"),
    ({"tools": [TOOLS[1], TOOLS[1]]}, "two functions"),
    ({"tools": TOOLS * 65}, "at most 128 entries"),
    ({"tool_choice": "required", "tools": []}, "needs `tools`"),
    ({"tool_choice": "other"}, "names 'other', which `tools` lacks"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "`tools` lacks"),
    ({"tool_choice": {"type": "custom"}}, "`tool_choice` must be none"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "never"}}}, "must be auto or required"),
    ({"tool_choice": 1}, "`tool_choice`: expected an object"),
    ({"functions": [FUNCTION]}, "`functions` and `tools` cannot both be set"),
    ({"structured_outputs": {"regex": "a"}}, "go with a JSON form"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "`messages[0].tool_call_id` must be"),
    ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "`messages[0].tool_call_id` must be"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "c"}]}]},
        "belongs in a message of `assistant`",
    ),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "belongs in a message of `tool`"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "`messages[0].tool_calls[0].function`"),
    ({"messages": [{"role": "assistant", "tool_calls": ["c"]}]}, "`messages[0].tool_calls[0]`: expected an object"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:50])
def test_wrong_tools_and_calls_are_refused(in_house: InHouse, fields: dict[str, Any], message: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, {"messages": said("x"), "tools": TOOLS, **fields})
        assert reply.status_code == 400, reply.text
        assert message in reply.json()["error"]["message"]
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert not house.engine.submitted

    in_house(scenario)


def test_a_base_without_a_form_of_calls_serves_no_tools(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, {"messages": said("x"), "tools": TOOLS})
        assert reply.json()["error"]["code"] == ToolsRefused.row.code
        assert "serves no tools" in reply.json()["error"]["message"]
        assert (
            await house.post(CHAT, {"messages": said("x"), "tools": TOOLS, "tool_choice": "none"})
        ).status_code == 200

    in_house(scenario, base_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
