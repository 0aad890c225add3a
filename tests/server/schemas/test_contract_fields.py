"""Every parameter that the routes document: it changes the request to the engine or the reply, or is refused by name.

The lists are those of the clients' contract, written out here, so that a field that is no longer read fails a case.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.server.conftest import House
from tests.support.body_models import body_models

InHouse = Callable[..., None]
Json = dict[str, Any]
GENERATE, COMPLETIONS, CHAT = "/generate", "/v1/completions", "/v1/chat/completions"
EMBEDDINGS, EMBED, CLASSIFY, BATCH, TOKENIZE = "/v1/embeddings", "/embed", "/classify", "/classify_batch", "/tokenize"
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
MERGED = {"ids": ["triage", "team/tone"], "weights": [1.0, 0.5]}
PRUNED = {**MERGED, "merge_strategy": "ties", "density": 0.5}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
SAID = [{"role": "user", "content": "SAY:abcdefgh"}]
SAMPLED: Json = {"do_sample": True, "temperature": 0.5}

LEAST: Mapping[str, Json] = {
    GENERATE: {"inputs": "SAY:abcdefgh", "parameters": {"max_new_tokens": 6, "seed": 1}},
    COMPLETIONS: {"prompt": "SAY:abcdefgh", "max_tokens": 6, "seed": 1},
    CHAT: {"messages": SAID, "max_tokens": 6, "seed": 1},
    EMBEDDINGS: {"input": "Hi"},
    EMBED: {"inputs": "Hi"},
    CLASSIFY: {"input": "Hi", "adapter_id": "sorter"},
    BATCH: {"inputs": ["Hi"], "adapter_id": "sorter"},
    TOKENIZE: {"inputs": "Hi"},
}

# name, value, and the fields beside it in both requests; a name `a.b` is field b of the object a
ADAPTERS: list[tuple[str, Any, Json]] = [
    ("adapter_id", "triage", {}),
    ("adapter_source", "hub", {"adapter_id": "team/tone"}),
    ("merged_adapters", MERGED, {}),
    ("merged_adapters.weights", [1.0, 0.25], {"merged_adapters": MERGED}),
    ("merged_adapters.ids", ["triage", "other"], {"merged_adapters": MERGED}),
    ("merged_adapters.merge_strategy", "dare_ties", {"merged_adapters": PRUNED}),
    ("merged_adapters.density", 0.25, {"merged_adapters": PRUNED}),
    ("merged_adapters.majority_sign_method", "frequency", {"merged_adapters": PRUNED}),
    ("api_token", "hf_x", {"adapter_id": "team/tone", "adapter_source": "hub"}),
]
SAMPLING: list[tuple[str, Any, Json]] = [
    ("temperature", 0.25, {}),
    ("top_k", 5, {}),
    ("top_p", 0.5, {}),
    ("typical_p", 0.5, {}),
    ("repetition_penalty", 1.5, {}),
    ("frequency_penalty", 0.5, {}),
    ("presence_penalty", 0.5, {}),
    ("stop", "c", {}),
    ("stop", ["c", "d"], {}),
    ("ignore_eos_token", True, {}),
    ("ignore_eos", True, {}),
    ("response_format", {"type": "json_object"}, {}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}, {}),
    ("response_format", {"type": "json_object", "schema": SCHEMA}, {}),
]
NATIVE: list[tuple[str, Any, Json]] = [
    *ADAPTERS,
    *SAMPLING,
    ("max_new_tokens", 3, {}),
    ("best_of", 2, {"do_sample": True, "seed": None}),
    ("do_sample", True, {}),
    ("seed", 7, SAMPLED),
    ("return_full_text", True, {}),
    ("truncate", 5, {}),
    ("details", True, {}),
    ("decoder_input_details", True, {"details": True}),
    ("return_k_alternatives", 2, {"details": True}),
    ("apply_chat_template", True, {}),
]
OPENAI: list[tuple[str, Any, Json]] = [
    *ADAPTERS,
    *SAMPLING,
    ("model", "triage", {}),
    ("n", 2, {}),
    ("logit_bias", {"65": 1}, {}),
    ("seed", 7, {}),
    ("stream", True, {}),
    ("stream_options", {"include_usage": True}, {"stream": True}),
    ("structured_outputs", {"json": SCHEMA}, {}),
    ("structured_outputs", {"regex": "[ab]+"}, {}),
    ("structured_outputs", {"choice": ["a", "b"]}, {}),
    ("structured_outputs", {"grammar": 'start: "a"'}, {}),
]
APPLIED: list[tuple[str, str, Any, Json]] = [
    *((GENERATE, f"parameters.{name}", value, {"parameters": beside}) for name, value, beside in NATIVE),
    *((path, *each) for path in (COMPLETIONS, CHAT) for each in OPENAI),
    (COMPLETIONS, "prompt", ["a", "b"], {}),
    (COMPLETIONS, "prompt", [65, 66], {}),
    (COMPLETIONS, "prompt", [[65], [66]], {}),
    (COMPLETIONS, "max_tokens", 3, {}),
    (COMPLETIONS, "logprobs", 2, {}),
    (COMPLETIONS, "echo", True, {}),
    (COMPLETIONS, "best_of", 2, {}),
    (CHAT, "max_completion_tokens", 3, {}),
    (CHAT, "max_tokens", 3, {}),
    (CHAT, "logprobs", True, {}),
    (CHAT, "top_logprobs", 3, {"logprobs": True}),
    (CHAT, "messages", [{"role": "system", "content": "x"}, *SAID], {}),
    (EMBEDDINGS, "input", ["a", "b"], {}),
    (EMBEDDINGS, "input", [65], {}),
    (EMBEDDINGS, "input", [[65], [66]], {}),
    (EMBEDDINGS, "model", "triage", {}),
    (EMBEDDINGS, "encoding_format", "base64", {}),
    (EMBEDDINGS, "dimensions", 3, {}),
    (EMBEDDINGS, "parameters", {"adapter_id": "triage"}, {}),
    (EMBED, "parameters", {"adapter_id": "triage"}, {}),
    (CLASSIFY, "model", "other", {"adapter_id": None, "model": "sorter"}),
    (BATCH, "inputs", ["Hi", "a"], {}),
    (TOKENIZE, "inputs", "a", {}),
]
REFUSED: list[tuple[str, str, Any]] = [
    (GENERATE, "parameters.watermark", True),
    *((GENERATE, f"parameters.{name}", value) for name, value in (("n", 2), ("logit_bias", {"65": 1}))),
    (COMPLETIONS, "suffix", "x"),
    (EMBEDDINGS, "dimensions", 5),  # of a model with four
    (CHAT, "tool_prompt", "x"),
    (CHAT, "guideline", "x"),
    (CHAT, "chat_template_kwargs", {"a": 1}),
]
TOOLS: list[tuple[str, Any, Json]] = [
    ("tools", [TOOL], {}),
    ("tool_choice", "none", {"tools": [TOOL]}),
    ("tool_choice", "required", {"tools": [TOOL]}),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}, {"tools": [TOOL]}),
    ("tool_choice", "f", {"tools": [TOOL]}),
    ("parallel_tool_calls", False, {"tools": [TOOL]}),
]
HERMES = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for message in messages %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}"
)
_OWN = re.compile(r'"(id|created)":("[^"]*"|\d+)')
"""Values of a reply that differ from one to the next."""


def merged(one: Json, other: Json) -> Json:
    """Two objects as one, and objects within them likewise. A value that is null removes the other."""
    found = dict(one)
    for name, value in other.items():
        inner = found.get(name)
        found[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def at(name: str, value: object) -> Json:
    """An object with the field `a.b` at its place."""
    *places, last = name.split(".")
    found: Json = {last: value}
    for place in reversed(places):
        found = {place: found}
    return found


async def outcome(house: House, path: str, body: Json) -> tuple[object, ...]:
    """All that a request leads to: what the engine gets, without ids and drawn seeds, and the reply."""
    before = len(house.engine.submitted)
    reply = await house.post(path, body)
    requests = [dataclasses.asdict(request) for request in house.engine.submitted[before:]]
    for facts in requests:
        del facts["id"], facts["waited_ms"], facts["found_in"]
        if re.search(r"'seed': \d", str(body)) is None:
            del facts["sampling"]["seed"]
    return reply.status_code, _OWN.sub("", reply.text), requests


async def without_effect(house: House, cases: list[tuple[str, str, Any, Json]]) -> list[tuple[object, ...]]:
    """The cases whose field changes nothing, or whose requests fail."""
    found = list[tuple[object, ...]]()
    without = dict[str, tuple[object, ...]]()
    for path, name, value, beside in cases:
        least = merged(LEAST[path], beside)
        if (alike := f"{path} {least}") not in without:
            without[alike] = await outcome(house, path, least)
            assert without[alike] == await outcome(house, path, least), (path, name, "two requests alike")
        first = without[alike]
        changed = await outcome(house, path, merged(least, at(name, value)))
        if (first[0], changed[0]) != (200, 200) or first == changed:
            found.append((path, name, value, first[0], changed[:2]))
    return found


def test_each_field_of_the_contract_changes_something(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert await without_effect(house, APPLIED) == []

    in_house(scenario, sources=("local", "hub"))


def test_each_field_of_tools_changes_something(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert await without_effect(house, [(CHAT, *each) for each in TOOLS]) == []

    in_house(scenario, base_template=HERMES)


def test_each_other_field_of_the_contract_is_refused_by_its_name(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path, name, value in REFUSED:
            reply = await house.post(path, merged(LEAST[path], at(name, value)))
            assert reply.status_code in (400, 422), (path, name)
            assert f"`{name.rpartition('.')[2]}`" in reply.text, reply.text

    in_house(scenario)


@pytest.mark.parametrize("path", [CLASSIFY, EMBED, "/"])
def test_what_clients_send_unasked_changes_nothing(in_house: InHouse, path: str) -> None:
    sent: dict[str, Json] = {
        CLASSIFY: {"api_token": "", "stream": False},
        EMBED: {"parameters": None, "stream": False},
        "/": {},
    }
    lorax: Json = dict.fromkeys(
        (name.removeprefix("parameters.") for _, name, _, _ in APPLIED if name.startswith("parameters.")), None
    )

    async def scenario(house: House) -> None:
        least = LEAST[GENERATE] if path == "/" else LEAST[path]
        names = [name for name in lorax if "." not in name and name not in LEAST[GENERATE]["parameters"]]
        more = {"parameters": dict.fromkeys(names)}
        changed = await outcome(house, path, merged(least, more if path == "/" else sent[path]))
        assert changed == await outcome(house, path, least)

    in_house(scenario)


def test_the_lists_name_fields_that_a_body_has() -> None:
    """The fields beyond the contract have their cases in `test_request_fields.py` and `test_openai_fields.py`."""
    known = {name for model in body_models() for name in (*model.names(), *model.rules.refused, *model.rules.unread)}
    names = [*(name for _, name, _, _ in APPLIED), *(name for _, name, _ in REFUSED)]
    assert {part for name in names for part in name.split(".")} <= known
