"""Fields of request bodies: applied, accepted unread, or refused by their names, on every route and at every level."""

from collections.abc import Callable, Mapping
from typing import Any

import httpx2
import pytest

from tests.server.conftest import House
from tests.support.body_models import body_models
from tests.support.paths import ROOT

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
STREAMING = ("/generate_stream", "/", "/invocations")
NATIVE = ("/generate", "/generate_stream", "/", "/invocations")
PREFIX = "/acme/deployments/v2/llms/tiny"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
GOOD: Mapping[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    COMPLETIONS: {"prompt": "Hi"},
    **{path: {"inputs": "Hi"} for path in NATIVE},
    "/tokenize": {"inputs": "Hi"},
    "/v1/embeddings": {"input": "Hi"},
    "/embed": {"inputs": "Hi"},
    "/classify": {"input": "Hi", "adapter_id": "sorter"},
    "/classify_batch": {"inputs": ["Hi"], "adapter_id": "sorter"},
}
LONGEST_NAME = 2_000_000


def told(reply: httpx2.Response) -> str:
    """The message of a refusal, which has the shape of its route."""
    error = reply.json()["error"]
    if isinstance(error, str):
        assert reply.status_code == 422, reply.text
        return error.removeprefix("Input validation error: ")
    assert reply.status_code == 400, reply.text
    assert error["type"] == "invalid_request_error"
    return str(error["message"])


async def refused(house: House, path: str, body: object) -> str:
    return told(await house.post(path, body))


async def passes(house: House, path: str, body: object) -> None:
    reply = await house.post(path, body)
    assert reply.status_code == 200, reply.text


def test_every_route_refuses_an_unknown_field(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for known, good in GOOD.items():
            for path in (known, f"{PREFIX}{known}".rstrip("/")):
                message = await refused(house, path, {**good, "xyzzy": 1})
                assert message.startswith("`xyzzy` is not a known field"), path
                await passes(house, path, {**good, "xyzzy": None})
        assert not house.engine.live

    in_house(scenario)


NEAREST: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"temprature": 1}, "temprature", "temperature"),
    (CHAT, {"Temperature": 1}, "Temperature", "temperature"),
    (CHAT, {"maxTokens": 1}, "maxTokens", "max_tokens"),
    (CHAT, {"max_completion_token": 1}, "max_completion_token", "max_completion_tokens"),
    (CHAT, {"adapterId": "x"}, "adapterId", "adapter_id"),
    (CHAT, {"stream": True, "stream_options": {"include_usages": True}}, "include_usages", "include_usage"),
    (CHAT, {"messages": [{"role": "user", "contents": "x"}]}, "contents", "content"),
    (CHAT, {"messages": [*MESSAGES, {"role": "user", "content": "x", "nme": "y"}]}, "nme", "name"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "txt": 1}]}]}, "txt", "text"),
    (CHAT, {"merged_adapters": {"ids": ["a"], "weights": [1], "densty": 1}}, "densty", "density"),
    (COMPLETIONS, {"stop_token_id_s": [1]}, "stop_token_id_s", "stop_token_ids"),
    (COMPLETIONS, {"logprob": 1}, "logprob", "logprobs"),
    (COMPLETIONS, {"merged_adapters": {"ids": ["a"], "weight": [1]}}, "weight", "weights"),
    (COMPLETIONS, {"response_format": {"type": "text", "typ": 1}}, "typ", "type"),
    ("/generate", {"parameters": {"max_new_token": 1}}, "max_new_token", "max_new_tokens"),
    ("/generate", {"parameters": {"merged_adapters": {"ids": ["a"], "weights": [1], "strateg": 1}}}, "strateg", ""),
    ("/generate", {"paramters": {}}, "paramters", "parameters"),
    ("/tokenize", {"add_special_token": True}, "add_special_token", "add_special_tokens"),
]


def test_the_nearest_known_name_is_told(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path, fields, name, nearest in NEAREST:
            message = await refused(house, path, {**GOOD[path], **fields})
            assert f"`{name}` is not a known field" in message
            assert f"`{nearest}`" in message or not nearest

    in_house(scenario)


def test_a_nested_field_is_named_with_its_place(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        part = {"type": "text", "text": "", "x": 1}
        for fields, place in (
            ({"stream": True, "stream_options": {"x": 1}}, "stream_options"),
            ({"messages": [*MESSAGES, {"role": "user", "content": "", "x": 1}]}, "messages[1]"),
            ({"messages": [{"role": "user", "content": [part]}]}, "messages[0].content"),
        ):
            reply = await house.post(CHAT, {**GOOD[CHAT], **fields})
            assert f"`x` is not a known field of `{place}`" in told(reply)
            assert reply.json()["error"]["param"] == f"{place}.x"

    in_house(scenario)


ADAPTER_NAMES = ("lora_path", "lora_adapter", "adapter_name", "lora", "lora_request", "lora_id", "adapter", "my_lora_x")


def test_another_server_s_name_for_the_adapter_is_refused_with_ours(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for name, value in ((name, value) for name in ADAPTER_NAMES for value in ("triage", {"name": "triage"})):
            for path in (CHAT, COMPLETIONS):
                assert "`model` or `adapter_id`" in await refused(house, path, {**GOOD[path], name: value})
            for path in NATIVE:
                for body in ({name: value}, {"parameters": {name: value}}):
                    assert "`parameters.adapter_id`" in await refused(house, path, {**GOOD[path], **body})
            message = {**MESSAGES[0], name: value}
            assert "at the top level" in await refused(house, CHAT, {"messages": [message]})
        assert not house.engine.submitted

    in_house(scenario)


MISPLACED: list[tuple[str, dict[str, Any], str]] = [
    ("/generate", {"adapter_id": "triage"}, "it belongs in `parameters`"),
    ("/generate", {"max_new_tokens": 3}, "it belongs in `parameters`"),
    ("/generate", {"min_tokens": 3}, "it belongs in `parameters`"),
    ("/generate", {"model": "triage"}, "name the adapter in `parameters.adapter_id`"),
    ("/generate", {"parameters": {"model": "triage"}}, "name the adapter in `parameters.adapter_id`"),
    ("/generate", {"parameters": {"inputs": "x"}}, "it belongs in the top level of the body"),
    ("/generate", {"parameters": {"max_tokens": 3}}, "use `max_new_tokens`"),
    ("/generate", {"parameters": {"stop_sequences": ["x"]}}, "use `stop`"),
    ("/generate", {"parameters": {"truncate_prompt_tokens": 3}}, "use `truncate`"),
    ("/generate", {"parameters": {"top_n_tokens": 3}}, "use `return_k_alternatives`"),
    ("/generate", {"parameters": {"logit_bias": {"1": 3}}}, "POST /v1/completions has it"),
    (COMPLETIONS, {"parameters": {"adapter_id": "triage"}}, "its fields stand at the top level of the body"),
    (COMPLETIONS, {"messages": MESSAGES}, "it belongs in the body of POST /v1/chat/completions"),
    (COMPLETIONS, {"inputs": "x"}, "use `prompt`"),
    (COMPLETIONS, {"truncate": 3}, "use `truncate_prompt_tokens`"),
    (COMPLETIONS, {"details": True}, "it belongs in the body of POST /generate"),
    (COMPLETIONS, {"include_usage": True}, "it belongs in `stream_options`"),
    (COMPLETIONS, {"top_logprobs": 3}, "use `logprobs`"),
    (CHAT, {"prompt": "x"}, "it belongs in the body of POST /v1/completions"),
    (CHAT, {"best_of": 2}, "it belongs in the body of POST /v1/completions"),
    (CHAT, {"suffix": "x"}, "it belongs in the body of POST /v1/completions"),
    (CHAT, {"max_new_tokens": 3}, "use `max_tokens`"),
    (CHAT, {"messages": [{**MESSAGES[0], "adapter_id": "triage"}]}, "it belongs in the top level of the body"),
    (CHAT, {"stream": True, "stream_options": {"adapter_id": "triage"}}, "it belongs in the top level of the body"),
]


def test_a_field_in_the_wrong_place_is_refused_with_the_right_one(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path, fields, remedy in MISPLACED:
            assert remedy in await refused(house, path, {**GOOD[path], **fields}), (path, fields)

    in_house(scenario)


NOT_BUILT: Mapping[str, object] = {
    "no_repeat_ngram_size": 2,
    "guided_decoding_backend": "xgrammar",
    "guided_options_request": {"guided_json": {"type": "object"}},
    "structural_tag": {"type": "structural_tag"},
    "grammar": {"type": "regex", "value": "a"},
    "json_schema": {"type": "object"},
    "regex": "a+",
    "ebnf": "root ::= 'a'",
    "use_beam_search": True,
    "length_penalty": 2.0,
    "prompt_logprobs": 0,
    "truncation_side": "right",
    "cache_salt": "x",
    "priority": 1,
}
ASKS_NOTHING: Mapping[str, object] = {
    "min_tokens": 0,
    "bad_words": [],
    "guided_choice": [],
    "guided_regex": "",
    "guided_json_object": False,
    "structured_outputs": {},
    "guided_decoding_backend": "auto",
    "use_beam_search": False,
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "truncation_side": "left",
    "tools": [],
}


def test_what_is_not_built_is_refused_by_its_name_unless_it_asks_for_nothing(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for name, value in NOT_BUILT.items():
            for path in (CHAT, COMPLETIONS):
                message = await refused(house, path, {**GOOD[path], name: value})
                assert message.startswith(f"`{name}` is not supported by this server yet")
            for path in NATIVE:
                message = await refused(house, path, {"inputs": "Hi", "parameters": {name: value}})
                assert message.startswith(f"`{name}` is not supported by this server yet")
        for name, value in ASKS_NOTHING.items():
            await passes(house, CHAT, {**GOOD[CHAT], name: value})
            await passes(house, COMPLETIONS, {**GOOD[COMPLETIONS], name: value})
            await passes(house, "/generate", {"inputs": "Hi", "parameters": {name: value}})
        assert "allowed_token_ids" in await refused(house, CHAT, {**GOOD[CHAT], "allowed_token_ids": []})

    in_house(scenario)


VALUES: list[tuple[str, dict[str, Any], str]] = [  # of fields that are known
    (CHAT, {"stream_options": {"include_usage": True}}, "`stream_options` needs `stream` to be true"),
    (COMPLETIONS, {"stream": False, "stream_options": {}}, "`stream_options` needs `stream` to be true"),
    (CHAT, {"stream": True, "stream_options": {"include_obfuscation": True}}, "`include_obfuscation`"),
    (CHAT, {"logprobs": 3}, "`logprobs`: expected a boolean, given an integer"),
    (COMPLETIONS, {"logprobs": True}, "`logprobs`: expected an integer, given a boolean"),
    (CHAT, {"top_logprobs": 3}, "`top_logprobs` needs `logprobs` to be true"),
    (CHAT, {"reasoning_effort": "high"}, "`reasoning_effort`"),
    (CHAT, {"prediction": {"type": "content", "content": "x"}}, "`prediction`"),
    (CHAT, {"parallel_tool_calls": "x"}, "`parallel_tool_calls`: expected a boolean"),
    (CHAT, {"verbosity": "low"}, "`verbosity`"),
    (CHAT, {"echo": True}, "`echo`"),
    (CHAT, {"seed": 1.5}, "`seed`: expected an integer, given a number"),
    (CHAT, {"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "`refusal`"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": 3}]}, "`name`: expected a string"),
    (CHAT, {"continue_final_message": True, "add_generation_prompt": True}, "must not both be true"),
    (CHAT, {"ignore_eos": True, "ignore_eos_token": False}, "are one option and differ"),
    (COMPLETIONS, {"suffix": ""}, "`suffix`"),
    (COMPLETIONS, {"response_format": {"type": "text", "schema": {"type": "object"}}}, "`schema`"),
    (COMPLETIONS, {"stop_token_ids": [259]}, "`stop_token_ids`: token ids must be >= 0 and < 259"),
    (COMPLETIONS, {"stop_token_ids": [-1]}, "`stop_token_ids`: token ids must be >= 0 and < 259"),
    (COMPLETIONS, {"stop_token_ids": [True]}, "`stop_token_ids[0]`: expected an integer, given a boolean"),
    (COMPLETIONS, {"stop_token_ids": 3}, "`stop_token_ids`: expected an array, given an integer"),
    (COMPLETIONS, {"stop_token_ids": [1] * 1025}, "`stop_token_ids` may have at most 1024 entries. Given: 1025"),
    (COMPLETIONS, {"allowed_token_ids": [259]}, "`allowed_token_ids`: token ids must be >= 0 and < 259"),
    (COMPLETIONS, {"allowed_token_ids": []}, "`allowed_token_ids` must have 1 to 1024 entries. Given: 0"),
    (COMPLETIONS, {"allowed_token_ids": [1] * 1025}, "`allowed_token_ids` must have 1 to 1024 entries. Given: 1025"),
    (COMPLETIONS, {"bad_words": ["x", " "]}, "`bad_words` must not contain empty strings"),
    (COMPLETIONS, {"bad_words": ["x"] * 129}, "`bad_words` may have at most 128 entries. Given: 129"),
    (COMPLETIONS, {"bad_words": ["x", "y" * 65]}, "`bad_words[1]` must have 1 to 64 tokens. Given: 65"),
    (COMPLETIONS, {"bad_words": 3}, "`bad_words`: expected a string or an array of strings, given an integer"),
    (COMPLETIONS, {"min_tokens": -1}, "`min_tokens`: expected an integer >= 0, given -1"),
    (COMPLETIONS, {"min_tokens": 1, "min_new_tokens": 2}, "are one option and differ"),
    (
        COMPLETIONS,
        {"min_tokens": 4, "max_tokens": 3},
        "`min_tokens` must be <= 3, the largest number of tokens to generate (`max_tokens`). Given: 4",
    ),
    ("/generate", {"parameters": {"min_new_tokens": 4, "max_new_tokens": 3}}, "`min_tokens` must be <= 3"),
    ("/generate", {"parameters": {"allowed_token_ids": []}}, "`allowed_token_ids` must have 1 to 1024 entries"),
    (COMPLETIONS, {"adapter_source": "hbu"}, "`adapter_source` must be one of"),
    ("/generate", {"parameters": {"adapter_source": "hbu"}}, "`adapter_source` must be one of"),
    ("/generate", {"stream": True}, "`stream`: this route does not stream; send the request to /generate_stream"),
    ("/generate_stream", {"stream": False}, "`stream`: this route streams; send the request to /generate"),
    ("/generate", {"parameters": {"stop": "x", "include_stop_str_in_output": False}}, "`include_stop_str_in_output`"),
    ("/generate", {"parameters": {"stop_token_ids": [999]}}, "`stop_token_ids`: token ids must be >= 0 and < 259"),
    ("/generate", {"parameters": {"response_format": {"type": "text", "value": "x"}}}, "`value`"),
]


def test_no_value_of_a_known_field_is_passed_over(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path, fields, message in VALUES:
            assert message in await refused(house, path, {**GOOD[path], **fields}), (path, fields)

    in_house(scenario)


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/generate"])
def test_logits_rules_reach_the_engine(in_house: InHouse, path: str) -> None:
    async def scenario(house: House) -> None:
        fields: dict[str, Any] = {"min_tokens": 2, "bad_words": [" hi", "x"], "allowed_token_ids": [65, 66.0]}
        body = {"inputs": "Hi", "parameters": fields} if path == "/generate" else {**GOOD[path], **fields}
        assert (await house.post(path, body)).status_code == 200
        request = house.engine.submitted[-1]
        assert request.stop.min_new_tokens == 2
        assert request.sampling.allowed_token_ids == (65, 66)
        words = [house.tokenizer.encode(word, add_special_tokens=False) for word in ("hi", " hi", "x", " x")]
        assert request.sampling.bad_words == tuple(map(tuple, words))

    in_house(scenario)


def test_metadata_and_what_clients_send_unasked_is_accepted(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        metadata: dict[str, Any] = {
            "user": "u",
            "metadata": {"adapter_id": "x"},
            "store": True,
            "service_tier": "auto",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "prompt_cache_retention": "24h",
        }
        await passes(house, CHAT, {**GOOD[CHAT], **metadata, "parallel_tool_calls": True, "tool_choice": "auto"})
        await passes(house, COMPLETIONS, {**GOOD[COMPLETIONS], **metadata})
        for stream in (True, False, None):  # lorax-client, to the root; litellm, to /generate_stream
            await passes(house, "/", {"inputs": "Hi", "parameters": None, "stream": stream})
        await passes(house, "/generate_stream", {"inputs": "Hi", "stream": True})
        await passes(house, "/generate", {"inputs": "Hi", "stream": False})
        replayed: dict[str, Any] = {
            "role": "assistant",
            "content": "x",
            "refusal": None,
            "tool_calls": None,
            "annotations": [],
        }
        await passes(house, CHAT, {"messages": [*MESSAGES, replayed, *MESSAGES]})

    in_house(scenario)


def test_a_speaker_s_name_reaches_the_chat_template(in_house: InHouse, tmp_path: Any) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, {"messages": [{"role": "user", "content": "Hi", "name": "bo"}], "max_tokens": 1})
        assert house.engine.submitted[-1].tokens == tuple(b"bo:Hi")
        assert reply.status_code == 200

    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.name }}:{{ m.content }}{% endfor %}")
    in_house(scenario)


TURNS = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def test_a_conversation_is_opened_left_or_continued(in_house: InHouse, tmp_path: Any) -> None:
    async def scenario(house: House) -> None:
        messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
        asked: list[tuple[dict[str, object], str]] = [
            ({}, "<s>user\nHi</s><s>assistant\nWell,</s><s>assistant\n"),
            ({"add_generation_prompt": True}, "<s>user\nHi</s><s>assistant\nWell,</s><s>assistant\n"),
            ({"add_generation_prompt": False}, "<s>user\nHi</s><s>assistant\nWell,</s>"),
            ({"continue_final_message": True}, "<s>user\nHi</s><s>assistant\nWell,"),
            ({"continue_final_message": True, "add_generation_prompt": None}, "<s>user\nHi</s><s>assistant\nWell,"),
        ]
        for fields, prompt in asked:
            await passes(house, CHAT, {"messages": messages, "max_tokens": 1, **fields})
            tokens = house.engine.submitted[-1].tokens
            assert house.tokenizer.decode(tokens, skip_special_tokens=False) == prompt
        empty = [*MESSAGES, {"role": "assistant", "content": " "}]
        message = await refused(house, CHAT, {"messages": empty, "continue_final_message": True})
        assert message == "`continue_final_message` needs text in the last message"

    (tmp_path / "chat_template.jinja").write_text(TURNS)
    in_house(scenario)


def test_the_last_tokens_of_a_prompt_are_kept(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for prompt, most, kept in (("0123", 2, b"23"), (list(b"0123"), 3.0, b"123"), ("01", 5, b"01")):
            body = {"prompt": prompt, "truncate_prompt_tokens": most, "max_tokens": 1, "echo": True, "temperature": 0}
            reply = await house.post(COMPLETIONS, body)
            assert house.engine.submitted[-1].tokens == tuple(kept)
            assert reply.json()["choices"][0]["text"] == f"{kept.decode()}H"
            assert reply.json()["usage"]["prompt_tokens"] == len(kept)
        long = "x" * 600
        for budget, count in ((None, 511), (1, 511), (100, 412), (511, 1)):
            await passes(house, COMPLETIONS, {"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": budget})
            assert len(house.engine.submitted[-1].tokens) == count
        await passes(house, CHAT, {"messages": [{"role": "user", "content": long}], "truncate_prompt_tokens": 511})
        for wrong in (0, -2, 512):
            message = await refused(house, COMPLETIONS, {"prompt": "x", "truncate_prompt_tokens": wrong})
            assert message == f"`truncate_prompt_tokens` must be -1, or >= 1 and <= 511. Given: {wrong}"

    in_house(scenario)


def test_alternatives_imply_the_details_they_stand_in(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/generate", {"inputs": "SAY:a", "parameters": {"return_k_alternatives": 2}})
        first = reply.json()["details"]["tokens"][0]
        assert [other["id"] for other in first["alternative_tokens"]] == [65, 66]

    in_house(scenario)


def test_hostile_names_are_cut_and_escaped(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for name in ("\x1b[2J", "a" * LONGEST_NAME, "\u202eabc", "é" * 1000, ""):
            message = await refused(house, CHAT, {**GOOD[CHAT], name: 1})
            assert message.isprintable()
            assert len(message) < 400
        many = {f"f{number}": 1 for number in range(50_000)}
        await refused(house, CHAT, {**GOOD[CHAT], **many})

    in_house(scenario)


def test_numbers_of_many_digits_are_refused_and_no_fault(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        digits = "9" * 5000
        head = {"content-type": "application/json"}
        for fields in (
            '"prompt": "x", "seed": DIGITS',
            '"prompt": "x", "logit_bias": {"DIGITS": 1}',
            '"prompt": "x", "stop_token_ids": [DIGITS]',
            '"prompt": "x", "max_tokens": -DIGITS',
            '"prompt": [DIGITS]',
        ):
            body = f"{{{fields.replace('DIGITS', digits)}}}"
            reply = await house.client.post(COMPLETIONS, content=body, headers=head)
            assert reply.status_code == 400, reply.text

    in_house(scenario)


def test_the_openapi_document_describes_the_fields(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        document = (await house.client.get("/openapi.json")).json()
        bodies = {
            path: operations["post"]["requestBody"]["content"]["application/json"]["schema"]
            for path, operations in document["paths"].items()
            if "application/json" in operations.get("post", {}).get("requestBody", {}).get("content", {})
        }
        for path in (CHAT, COMPLETIONS, "/generate", "/tokenize"):
            assert bodies[path]["additionalProperties"] is False
        assert {"stop_token_ids", "continue_final_message", "truncate_prompt_tokens"} <= set(bodies[CHAT]["properties"])
        parameters = bodies["/generate"]["properties"]["parameters"]["anyOf"][0]
        assert parameters["properties"]["skip_special_tokens"]["description"]
        assert parameters["properties"]["top_p"]["maximum"] == 1

    in_house(scenario)


def test_the_openapi_document_describes_replies_and_events(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        paths = (await house.client.get("/openapi.json")).json()["paths"]
        shown = {path: paths[path]["post"]["responses"]["200"]["content"] for path in (CHAT, COMPLETIONS, *STREAMING)}
        for path, content in shown.items():
            assert content["text/event-stream"]["schema"]["properties"], path
            assert ("application/json" in content) == (path not in ("/generate_stream",)), path
        assert "delta" in str(shown[CHAT]["text/event-stream"])
        assert shown["/"]["application/json"]["schema"]["type"] == "array"
        for path in ("/generate", CHAT):
            assert paths[path]["post"]["responses"]["default"]["content"]["application/json"]["schema"]["properties"]

    in_house(scenario)


def test_the_page_of_fields_names_every_field() -> None:
    page = (ROOT / "docs" / "request-fields.md").read_text(encoding="utf-8")
    models = body_models()
    assert len(models) >= 10
    names = {name for model in models for name in (*model.names(), *model.rules.unread, *model.rules.refused)}
    of_operators = {"action", "type", "text", "value"}
    assert not {name for name in names - of_operators if f"`{name}`" not in page and f".{name}`" not in page}
