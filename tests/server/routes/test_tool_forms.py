"""Each form of calls over HTTP: the prompt with tools, earlier calls and results, the grammar, and the stream."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx2
import pytest

from tests.server.conftest import House
from tests.server.routes.test_tools import CHAT, chunks, said
from tests.server.tools.templates import LLAMA_31, LLAMA_FUNCTION, QWEN3_CODER

InHouse = Callable[..., None]
WINDOW = {"max_model_len": 4096}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool("weather", city={"type": "string"}, days={"type": "array", "items": {"type": "integer"}})
SEARCH = tool("brave_search", query={"type": "string"})
CODE = tool("code_interpreter", code={"type": "string"})


class Form(NamedTuple):
    """A form of calls: a template, tools, the call that the model writes, its name and arguments, and words of the
    prompt.

    shown    words by which the prompt shows the tools
    earlier  the call in a later prompt
    result   its result there
    """

    template: str
    tools: list[dict[str, Any]]
    written: str
    name: str
    arguments: dict[str, Any]
    shown: str
    earlier: str
    result: str
    grammar: str


PARAMETERS = '<parameter=city>\nÅs "x"\n</parameter>\n<parameter=days>\n[1, 2]\n</parameter>\n'
ARGUMENTS = {"city": 'Ås "x"', "days": [1, 2]}
FORMS = {
    "qwen3-coder": Form(
        QWEN3_CODER,
        [WEATHER],
        f"<tool_call>\n<function=weather>\n{PARAMETERS}</function>\n</tool_call>",
        "weather",
        ARGUMENTS,
        "<name>city</name>\n<type>string</type>",
        f"<tool_call>\n<function=weather>\n{PARAMETERS}</function>\n</tool_call><|im_end|>",
        "<tool_response>\nsunny\n</tool_response>",
        "<parameter=days>",
    ),
    "llama3-builtin search": Form(
        LLAMA_31,
        [SEARCH, WEATHER],
        '<|python_tag|>brave_search.call(query="Ås")',
        "brave_search",
        {"query": "Ås"},
        "Environment: ipython\nTools: brave_search\n",
        '<|python_tag|>brave_search.call(query="Ås")<|eom_id|>',
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>",
        "brave_search.call(",
    ),
    "llama3-builtin code": Form(
        LLAMA_31,
        [CODE],
        "<|python_tag|>print('Ås')\nx = 1",
        "code_interpreter",
        {"code": "print('Ås')\nx = 1"},
        "Environment: ipython\nTools: \n",
        "<|python_tag|>code_interpreter.call(code=\"print('Ås')\nx = 1\")<|eom_id|>",
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>",
        "KNOWN",
    ),
    "llama3-builtin other": Form(
        LLAMA_31,
        [SEARCH, WEATHER],
        '{"name": "weather", "parameters": {"city": "Ås \\"x\\"", "days": [1, 2]}}',
        "weather",
        ARGUMENTS,
        '"name": "weather"',
        '{"name": "weather", "parameters": {"city": "Ås \\"x\\"", "days": [1, 2]}}<|eot_id|>',
        "<|start_header_id|>ipython<|end_header_id|>\n\nsunny<|eot_id|>",
        "brave_search.call(",
    ),
    "llama3-function": Form(
        LLAMA_FUNCTION,
        [WEATHER],
        '<function=weather>{"city": "Ås \\"x\\"", "days": [1, 2]}</function>',
        "weather",
        ARGUMENTS,
        "Use the function 'weather'",
        '<function=weather>{"city": "Ås \\"x\\"", "days": [1, 2]}</function>',
        "tool: sunny\n",
        "<function=",
    ),
}


async def ask(house: House, form: Form, **fields: Any) -> httpx2.Response:
    reply = await house.post(CHAT, {"tools": form.tools, "max_tokens": 300, **fields})
    assert reply.status_code == 200, reply.text
    return reply


def prompt(house: House) -> str:
    return bytes(token for token in house.engine.submitted[-1].tokens if token < 256).decode()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_call_is_forced_streamed_and_read(in_house: InHouse, form: Form) -> None:
    async def scenario(house: House) -> None:
        (choice,) = (await ask(house, form, messages=said(form.written))).json()["choices"]
        assert choice["finish_reason"] == "tool_calls"
        assert form.shown in prompt(house)
        grammar = house.engine.submitted[-1].grammar
        assert grammar is not None
        assert form.grammar in grammar.text
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == form.name
        arguments = json.loads(call["function"]["arguments"])
        if form.grammar == "KNOWN":  # code ends with the reply, and the fake engine repeats the prompt behind the text
            arguments["code"] = arguments["code"].partition("<|eot_id|>")[0]
        assert arguments == form.arguments
        found = chunks(await ask(house, form, messages=said(form.written), stream=True))
        pieces = [piece for each in found for piece in each["choices"][0]["delta"].get("tool_calls", ())]
        assert [piece["function"]["name"] for piece in pieces if "id" in piece] == [form.name]
        assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]

    in_house(scenario, base_template=form.template, served_as=WINDOW)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_template_gets_a_call_and_its_result_back(in_house: InHouse, form: Form) -> None:
    async def scenario(house: House) -> None:
        function = {"name": form.name, "arguments": json.dumps(form.arguments)}
        messages = [
            {"role": "user", "content": "Hi"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
        await ask(house, form, messages=messages, max_tokens=4)
        text = prompt(house)
        assert form.earlier in text
        assert form.result in text.partition(form.earlier)[2]

    in_house(scenario, base_template=form.template, served_as=WINDOW)


def test_a_schema_that_tags_cannot_have_is_refused_by_name(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        tools = [tool("f", x={"type": "string", "format": "ipv6"})]
        reply = await house.post(CHAT, {"messages": said("x"), "tools": tools})
        assert reply.status_code == 400
        message = reply.json()["error"]["message"]
        assert "parameter 'x' has the format 'ipv6'" in message
        assert "qwen3-coder" in message

    in_house(scenario, base_template=QWEN3_CODER)
