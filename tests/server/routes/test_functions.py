"""The older form of tools on POST /v1/chat/completions: `functions`, `function_call` and their messages."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.server.conftest import House
from tests.server.routes.test_tools import CALLS, CHAT, SCHEMA, chunks, grammar_text, said

InHouse = Callable[..., None]
FUNCTIONS: list[dict[str, Any]] = [{"name": "get", "description": "Weather", "parameters": SCHEMA}, {"name": "now"}]
ARGUMENTS = '{"city": "Ås"}'


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": said(CALLS), "functions": FUNCTIONS, "max_tokens": 150, **fields}


def test_a_whole_reply_has_one_function_call(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        (choice,) = (await house.post(CHAT, body())).json()["choices"]
        assert choice["finish_reason"] == "function_call"
        assert choice["message"] == {
            "role": "assistant",
            "content": "Let me look.",
            "refusal": None,
            "function_call": {"name": "get", "arguments": ARGUMENTS},
        }
        (alone,) = (await house.post(CHAT, body(messages=said(CALLS.partition("\n")[2])))).json()["choices"]
        assert alone["message"]["content"] is None
        (plain,) = (await house.post(CHAT, body(messages=said("It rains.")))).json()["choices"]
        assert (plain["message"]["content"], plain["finish_reason"]) == ("It rains.", "stop")
        assert "function_call" not in plain["message"]

    in_house(scenario)


def test_a_stream_has_the_pieces_of_one_function_call(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        found = chunks(await house.post(CHAT, body(stream=True)))
        deltas = [chunk["choices"][0]["delta"] for chunk in found]
        first, *more = [delta["function_call"] for delta in deltas if "function_call" in delta]
        assert first == {"name": "get", "arguments": ""}
        assert all(piece.keys() == {"arguments"} for piece in more)
        assert "".join(piece["arguments"] for piece in more) == ARGUMENTS
        assert found[-1]["choices"][0]["finish_reason"] == "function_call"
        assert not any("tool_calls" in delta for delta in deltas)

    in_house(scenario)


def test_the_choice_is_forced_by_the_grammar_and_the_prompt(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post(CHAT, body(function_call={"name": "now"}))
        assert "now" in grammar_text(house)
        assert "get" not in grammar_text(house)
        assert "start: opened calls" in grammar_text(house)
        await house.post(CHAT, body(function_call="auto"))
        assert "start: opened calls" not in grammar_text(house)
        as_tools = [{"type": "function", "function": function} for function in FUNCTIONS]
        await house.post(CHAT, {"messages": said(CALLS), "tools": as_tools, "parallel_tool_calls": False})
        older, newer = house.engine.submitted[-2:]
        assert (older.tokens, older.grammar) == (newer.tokens, newer.grammar)
        for none in ({"function_call": "none"}, {"tool_choice": "none"}):
            await house.post(CHAT, body(**none))
            assert house.engine.submitted[-1].grammar is None

    in_house(scenario)


def test_older_messages_make_the_same_prompt_as_newer_ones(in_house: InHouse) -> None:
    call = {"name": "get", "arguments": ARGUMENTS}
    older = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "get", "content": "rain"},
    ]
    newer = [
        older[0],
        {"role": "assistant", "tool_calls": [{"id": "call00000", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call00000", "content": "rain"},
    ]

    async def scenario(house: House) -> None:
        for messages in (older, newer):
            reply = await house.post(CHAT, {"messages": messages, "max_tokens": 2})
            assert reply.status_code == 200, reply.text
        first, second = house.engine.submitted
        assert first.tokens == second.tokens
        assert "rain" in house.tokenizer.decode(first.tokens, skip_special_tokens=False)

    in_house(scenario)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"functions": {}}, "functions"),
    ({"functions": [1]}, "`functions[0]`: expected an object, given an integer"),
    ({"functions": [{"name": "a b"}]}, "`functions[0].name` must have 1 to 64 letters"),
    ({"functions": [{"name": "a", "parameterz": {}}]}, "`parameterz` is not a known field of `functions[0]`"),
    ({"functions": [{"name": "a"}, {"name": "a"}]}, "`functions` has two functions with the name 'a'"),
    ({"functions": [{"name": "a"}] * 129}, "`functions` may have at most 128 entries"),
    ({"function_call": "any"}, "`function_call` must be none, auto or an object"),
    ({"function_call": {"name": "other"}}, "`function_call` names 'other', which `functions` lacks"),
    ({"function_call": 1}, "`function_call`: expected an object"),
    ({"functions": [], "function_call": {"name": "get"}}, "`functions` lacks"),
    ({"messages": [{"role": "function", "name": "get", "content": "x"}]}, "`messages[0].name` must be that of a"),
    ({"messages": [{"role": "function", "content": "x"}]}, "`messages[0].name` must be that of a"),
    ({"messages": [{"role": "user", "content": "x", "function_call": {"name": "a"}}]}, "belongs in a message of `assi"),
    ({"messages": [{"role": "assistant", "function_call": {"name": "a"}}]}, "expected `name` and `arguments`"),
    ({"messages": [{"role": "assistant", "function_call": "a"}]}, "`messages[0].function_call`: expected an object"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [1], "function_call": {"name": "a", "arguments": "{}"}}]},
        "`messages[0]` has both",
    ),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: json.dumps(value)[:50])
def test_wrong_functions_and_calls_are_refused(in_house: InHouse, fields: dict[str, Any], message: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, body(**fields))
        assert reply.status_code == 400, reply.text
        assert message in reply.json()["error"]["message"]
        assert not house.engine.submitted

    in_house(scenario)
