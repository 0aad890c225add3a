"""Values of every JSON kind at every place of a body: each is read or refused, and none is a fault."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from manylora.config.settings import Config
from manylora.errors import InvalidParameter
from manylora.server.schemas.body import Body, Bounds
from manylora.server.schemas.lorax.bodies import GenerateBody
from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody
from manylora.server.schemas.openai.conversations import NewConversation, NewItems
from manylora.server.schemas.openai.responses import ResponseBody
from manylora.server.tools.formats import FORMATS
from manylora.server.tools.grammar import tool_grammar
from manylora.server.tools.tool import ToolSet

Json = Any  # a JSON value of any type
Path = tuple[str | int, ...]
BOUNDS = Bounds(settings=Config().server, max_input=511)
KINDS: tuple[Json, ...] = (None, True, 5, 1.5, "x", [1], [[1]], {"a": 1}, {"type": {"a": 1}})
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "format": "date", "minLength": 1},
        "days": {"type": ["integer", "null"]},
        "unit": {"enum": ["C"], "type": "string"},
        "either": {"anyOf": [{"$ref": "#/$defs/d"}]},
    },
    "required": ["query"],
    "$defs": {"d": {"type": "string", "pattern": "a"}},
}
FUNCTION: Json = {"name": "brave_search", "description": "x", "parameters": SCHEMA, "strict": True}
CALLED: Json = {"name": "f", "arguments": "{}"}
FORMAT: Json = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
ITEMS: Json = [
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "output_text", "text": "x"}]},
]
MESSAGES: Json = [
    {"role": "user", "content": [{"type": "text", "text": "x"}], "name": "n"},
    {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": CALLED}]},
    {"role": "tool", "tool_call_id": "c", "content": "x"},
    {"role": "assistant", "function_call": CALLED},
    {"role": "function", "name": "f", "content": "x"},
]
ADAPTERS: Json = [{"id": "a", "weight": 1}]
MERGED: Json = {"ids": ["a", "b"], "weights": [1, 1], "merge_strategy": "ties", "density": 0.5}
OPTIONS: Json = {"stream": True, "stream_options": {"include_usage": True}, "logit_bias": {"1": 1}, "stop": ["a"]}
ALLOWED: Json = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "brave_search"}}]}
CHOICE: Json = {"type": "allowed_tools", "allowed_tools": ALLOWED}
BODIES: list[tuple[type[Body], Json]] = [
    (ChatBody, {"messages": MESSAGES, "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": CHOICE}),
    (ChatBody, {"messages": MESSAGES[:1], "functions": [FUNCTION], "function_call": {"name": "brave_search"}}),
    (ChatBody, {"messages": MESSAGES[:1], "response_format": FORMAT, "adapters": ADAPTERS, **OPTIONS}),
    (CompletionBody, {"prompt": ["x"], "response_format": FORMAT, "merged_adapters": MERGED, **OPTIONS}),
    (CompletionBody, {"prompt": [[1]], "structured_outputs": {"choice": ["a"]}, "adapters": ADAPTERS}),
    (ResponseBody, {"input": ITEMS, "conversation": {"id": "c"}, "text": {"format": FORMAT}, "metadata": {"a": "b"}}),
    (ResponseBody, {"input": "x", "tools": [{"type": "function", **FUNCTION}], "include": ["reasoning"]}),
    (NewConversation, {"items": ITEMS, "metadata": {"a": "b"}}),
    (NewItems, {"items": ITEMS}),
    (GenerateBody, {"inputs": "x", "parameters": {"adapter_id": "a", "stop": ["x"], "response_format": FORMAT}}),
    (GenerateBody, {"inputs": "x", "parameters": {"merged_adapters": MERGED, "guided_json": {"type": "object"}}}),
    (GenerateBody, {"inputs": "x", "parameters": {"adapters": ADAPTERS, "seed": 1}}),
]


def paths_in(value: Json) -> Iterator[Path]:
    """Yield the path of every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (key,)
        yield from ((key, *path) for path in paths_in(each))


def replaced(body: Json, path: Path, value: Json) -> Json:
    changed = copy.deepcopy(body)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


@pytest.mark.parametrize(("model", "body"), BODIES, ids=[f"{m.__name__}-{[*b][1:2]}" for m, b in BODIES])
def test_a_value_of_any_kind_is_read_or_refused(model: type[Body], body: Json) -> None:
    for path in paths_in(body):
        for value in KINDS:
            changed = replaced(body, path, value)
            try:
                read = model.model_validate(changed, context=BOUNDS)
                if isinstance(read, ChatBody) and (tools := (*read.tools, *read.functions)):
                    for form in FORMATS.values():
                        form.template_fields(tools)
                        with suppress(InvalidParameter):
                            tool_grammar(form, ToolSet(shown=tools, tools=tools), lambda _: None)
            except InvalidParameter:
                continue
            except Exception as error:
                raise AssertionError(f"{path} = {value!r}") from error
