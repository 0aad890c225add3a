"""Mistral's later forms of tools against mistral-common: prompts with tools, calls and results, and calls read back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manylora.server.tools.calls import CallArguments, CallStart, ToolCallReader
from manylora.server.tools.formats import MISTRAL_V11, MISTRAL_V13, ToolFormat, format_of
from manylora.server.tools.tool import Tool, ToolSet
from tests.server.conftest import House
from tests.server.tools import templates
from tests.server.tools.test_grammar import accepts

InHouse = Callable[..., None]
Json = dict[str, Any]
FORMS = {"v11": (templates.MISTRAL_V11, MISTRAL_V11), "v13": (templates.MISTRAL_V13, MISTRAL_V13)}


@pytest.fixture(scope="module")
def recorded() -> Json:
    found: Json = json.loads(Path(__file__).with_name("mistral_tools.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(("version", "template", "form"), [(name, *both) for name, both in FORMS.items()])
def test_a_prompt_is_that_of_mistral_common(
    in_house: InHouse, recorded: Json, version: str, template: str, form: ToolFormat
) -> None:
    assert format_of(template) == form
    assert len(recorded[version]) > 10

    async def scenario(house: House) -> None:
        for each in recorded[version]:
            fields = {"messages": each["messages"], "tools": recorded["tools"], "max_tokens": 1}
            reply = await house.post("/v1/chat/completions", fields)
            assert reply.status_code == 200, reply.text
            marks = {256: "<s>", 257: "</s>", 258: "<unk>"}
            text = b"".join(
                marks[token].encode() if token in marks else bytes([token])
                for token in house.engine.submitted[-1].tokens
            )
            assert text.decode() == each["text"]

    in_house(scenario, base_template=template, served_as={"max_model_len": 1 << 14})


@pytest.mark.parametrize(("version", "form"), [(name, form) for name, (_, form) in FORMS.items()])
def test_calls_of_mistral_common_are_accepted_and_read_back(recorded: Json, version: str, form: ToolFormat) -> None:
    names = [tool["function"]["name"] for tool in recorded["tools"]]
    tools = tuple(Tool(name=name, parameters={"type": "object"}, given={}) for name in names)
    num_read = 0
    for each in recorded[version]:
        turns = [turn for turn in each["messages"] if turn.get("tool_calls")]
        texts = [text for text in each["text"].split("</s>")[:-1] if "[TOOL_CALLS]" in text]
        assert len(texts) == len(turns)
        for turn, text in zip(turns, texts, strict=True):
            reply = text.rpartition("[/INST]")[2] if "[/INST]" in text else text.rpartition("[/TOOL_RESULTS]")[2]
            assert accepts(form, reply, ToolSet(shown=tools, tools=tools)), reply
            reader = ToolCallReader(form, tools)
            deltas = [delta for character in reply for delta in reader.push(character)] + reader.finish()
            assert "".join(delta for delta in deltas if isinstance(delta, str)) == (turn["content"] or "")
            called = [call["function"] for call in turn["tool_calls"]]
            assert [delta.name for delta in deltas if isinstance(delta, CallStart)] == [call["name"] for call in called]
            for number, call in enumerate(called):
                parts = (d.text for d in deltas if isinstance(d, CallArguments) and d.call == number)
                assert json.loads("".join(parts)) == json.loads(call["arguments"])
            num_read += len(called)
    assert num_read > 15
