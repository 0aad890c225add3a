"""The OpenAI routes, as a client sees them."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from manylora.server.generation.text import TextToken
from manylora.server.routes.openai.choices import in_echo
from tests.server.conftest import House

InHouse = Callable[..., None]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chunks(reply: httpx2.Response) -> list[dict[str, Any]]:
    events = reply.content.decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_a_chat_completion_has_openai_s_shape(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = (await house.post(CHAT, {"model": "triage", "messages": user("Hi"), "temperature": 0})).json()
        assert reply["id"].startswith("chatcmpl-")
        assert reply["object"] == "chat.completion"
        assert reply["model"] == "triage"
        assert reply["system_fingerprint"] == "manylora-0123456789ab"
        message = {"role": "assistant", "content": "Hello from triage.", "refusal": None}
        assert reply["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
        assert reply["usage"] == {
            "prompt_tokens": 8,
            "completion_tokens": 19,
            "total_tokens": 27,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    in_house(scenario)


def test_a_completion_takes_each_form_of_prompt(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for prompt, count in (("SAY:a", 1), (["SAY:a", "SAY:b"], 2), ([83, 65], 1), ([[83], [65, 66]], 2)):
            reply = await house.post(COMPLETIONS, {"model": "", "prompt": prompt})
            assert reply.status_code == 200
            body = reply.json()
            assert [choice["index"] for choice in body["choices"]] == list(range(count))
            assert body["object"] == "text_completion"
            assert body["id"].startswith("cmpl-")
        assert body["choices"][0]["text"][1:] == "Hello from base"

    in_house(scenario)


def test_n_choices_have_seeds_of_their_own_and_all_are_counted(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": ["a", "b"], "n": 2, "seed": 3, "max_tokens": 2}
        reply = (await house.post(COMPLETIONS, body)).json()
        assert [choice["text"] for choice in reply["choices"]] == ["3H", "4H", "3H", "4H"]
        assert reply["usage"]["completion_tokens"] == 8
        assert reply["usage"]["prompt_tokens"] == 2

    in_house(scenario)


def test_best_of_returns_the_likeliest(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": "a", "best_of": 3, "seed": 5, "max_tokens": 1}
        reply = (await house.post(COMPLETIONS, body)).json()
        assert [choice["text"] for choice in reply["choices"]] == ["5"]
        assert reply["choices"][0]["logprobs"] is None
        assert reply["usage"]["completion_tokens"] == 3

    in_house(scenario)


@pytest.mark.parametrize("stop", ["STOP", ["zzz", "STOP"]])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_is_removed(in_house: InHouse, stop: object, is_stream: bool) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": "SAY:a ST b STOP c", "stop": stop, "max_tokens": 50, "stream": is_stream}
        reply = await house.post(COMPLETIONS, body)
        if is_stream:
            found = chunks(reply)
            text = "".join(chunk["choices"][0]["text"] for chunk in found)
            reason = found[-1]["choices"][0]["finish_reason"]
        else:
            choice = reply.json()["choices"][0]
            text, reason = choice["text"], choice["finish_reason"]
        assert (text, reason) == ("a ST b ", "stop")

    in_house(scenario)


def test_what_may_begin_a_stop_string_is_let_out_at_the_end(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(COMPLETIONS, {"prompt": "SAY:abS", "stop": "STOP", "stream": True})
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks(reply)) == "abS"

    in_house(scenario)


def test_a_chat_stream_opens_with_the_role_and_closes_with_the_reason(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, {"messages": user("SAY:ab"), "stream": True, "max_tokens": 1})
        found = chunks(reply)
        assert [chunk["choices"][0]["delta"] for chunk in found] == [
            {"role": "assistant", "content": ""},
            {"content": "a"},
            {},
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [None, None, "length"]
        assert len({chunk["id"] for chunk in found}) == 1
        assert all("usage" not in chunk for chunk in found)
        assert found[0]["object"] == "chat.completion.chunk"

    in_house(scenario)


def test_include_usage_adds_a_chunk_without_choices(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"messages": user("SAY:ab"), "stream": True, "stream_options": {"include_usage": True}}
        *others, last = chunks(await house.post(CHAT, body))
        assert all(chunk["usage"] is None for chunk in others)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3

    in_house(scenario)


def test_several_choices_stream_together(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": "a", "n": 3, "seed": 1, "max_tokens": 3, "stream": True}
        texts = {0: "", 1: "", 2: ""}
        for chunk in chunks(await house.post(COMPLETIONS, body)):
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == {0: "1He", 1: "2He", 2: "3He"}

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
def test_log_probabilities_of_completions(in_house: InHouse, is_stream: bool) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": "SAY:ab", "logprobs": 1, "temperature": 0, "seed": 0, "stream": is_stream}
        reply = await house.post(COMPLETIONS, body)
        found = [chunk["choices"][0]["logprobs"] for chunk in (chunks(reply) if is_stream else [reply.json()])]
        merged: dict[str, list[object]] = {}
        for piece in filter(None, found):
            for name, values in piece.items():
                merged.setdefault(name, []).extend(values)
        assert merged == {
            "tokens": ["a", "b"],
            "token_logprobs": [-0.5, -0.5],
            "top_logprobs": [{"a": -0.5, "A": -1.0}, {"b": -0.5, "A": -1.0}],
            "text_offset": [0, 1],
        }

    in_house(scenario)


def test_log_probabilities_of_chat(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        body = {"messages": user("SAY:a"), "logprobs": True, "top_logprobs": 1, "seed": 0}
        reply = (await house.post(CHAT, body)).json()
        (entry,) = reply["choices"][0]["logprobs"]["content"]
        assert entry == {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "A", "logprob": -1.0, "bytes": [65]}],
        }

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
def test_echo_puts_the_prompt_first(in_house: InHouse, is_stream: bool) -> None:
    async def scenario(house: House) -> None:
        body = {"prompt": "SAY:ab", "echo": True, "stream": is_stream}
        reply = await house.post(COMPLETIONS, body)
        found = chunks(reply) if is_stream else [reply.json()]
        assert "".join(chunk["choices"][0]["text"] for chunk in found) == "SAY:abab"

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("prompt", "budget"), [("SAY:é", 2), ([83, 65, 89, 58, 195, 169], 2), ("SAY:é", 0)])
def test_an_echo_with_logprobs_scores_the_prompt(
    in_house: InHouse, is_stream: bool, prompt: object, budget: int
) -> None:
    """The first token has no score. Offsets go on behind the echo, and two tokens of one character share one."""

    async def scenario(house: House) -> None:
        body = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": budget, "n": 2, "stream": is_stream}
        reply = await house.post(COMPLETIONS, body)
        found = chunks(reply) if is_stream else [reply.json()]
        for index in range(2):
            lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
            text = ""
            for choice in (choice for chunk in found for choice in chunk["choices"] if choice["index"] == index):
                text += choice["text"]
                for name in lists if choice["logprobs"] else ():
                    lists[name] += choice["logprobs"][name]
            assert text == "SAY:é" + ("é" if budget else "")
            assert lists["tokens"] == [*"SAY:", *2 * ["bytes:\\xc3", "bytes:\\xa9"]][: 6 + budget]
            assert lists["token_logprobs"][:6] == [None, -1, -2, -3, -4, -5]
            assert lists["top_logprobs"][:3] == [None, {"A": -1}, {"Y": -2, "A": -0.25}]
            assert lists["text_offset"] == [0, 1, 2, 3, 4, 4, 5, 5][: 6 + budget]

    in_house(scenario)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_echo", [True, False])
def test_behind_an_echo_the_lists_have_the_token_that_ends_the_text(
    in_house: InHouse, is_stream: bool, is_echo: bool
) -> None:
    """lm-eval takes the tokens of a scored prompt up to the last one of the lists, which it has the server generate."""

    async def scenario(house: House) -> None:
        body = {"prompt": "SAY:ab", "echo": is_echo, "logprobs": 1, "max_tokens": 5, "stream": is_stream}
        reply = await house.post(COMPLETIONS, body)
        found = [choice for chunk in (chunks(reply) if is_stream else [reply.json()]) for choice in chunk["choices"]]
        lists = [choice["logprobs"] for choice in found if choice["logprobs"]]
        tokens, offsets = ([each for some in lists for each in some[name]] for name in ("tokens", "text_offset"))
        assert found[-1]["finish_reason"] == "stop"
        if not is_echo:
            assert tokens == ["a", "b"]
            return
        assert tokens[:-1] == [*"SAY:abab"]
        assert offsets == [*range(9)]
        assert tokens[-1] not in ("", "b")

    in_house(scenario)


def test_an_echo_s_offsets_leave_out_what_the_tokenizer_added() -> None:
    texts = ["<s>", "H", "i"]
    offsets = (0, 3, 4)
    tokens = [
        TextToken(id=0, text=text, offset=offset, logprob=None, is_special=False)
        for text, offset in zip(texts, offsets, strict=True)
    ]
    assert [token.offset for token in in_echo(tokens, "Hi")] == [0, 0, 1]
    assert [token.offset for token in in_echo(tokens, "<s>Hi")] == [0, 3, 4]


def test_completions_stop_at_sixteen_tokens_unless_told(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = (await house.post(COMPLETIONS, {"prompt": "SAY:" + "x" * 30})).json()
        assert reply["choices"][0]["text"] == "x" * 16
        assert reply["choices"][0]["finish_reason"] == "length"
        await house.post(COMPLETIONS, {"prompt": "SAY:" + "x" * 500})
        assert house.engine.submitted[-1].stop.max_new_tokens == 8

    in_house(scenario)


def test_an_unknown_model_is_never_the_base(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for body in ({"model": "missing-one"}, {"model": "tiny", "adapter_id": "missing-one"}):
            for stream in (False, True):
                reply = await house.post(CHAT, {**body, "messages": user("Hi"), "stream": stream})
                assert reply.status_code == 404
                error = reply.json()["error"]
                assert error["code"] == "model_not_found"
                assert error["type"] == "invalid_request_error"
                text = "The model `missing-one` does not exist or you do not have access to it."
                assert error["message"] == text

    in_house(scenario)


REFUSED = [
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"audio": {"voice": "x"}}, "audio"),
    (CHAT, {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    (CHAT, {"guideline": "x"}, "guideline"),
    (COMPLETIONS, {"suffix": "x"}, "suffix"),
]


@pytest.mark.parametrize(("path", "fields", "name"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_is_not_built_is_refused_by_name(in_house: InHouse, path: str, fields: object, name: str) -> None:
    async def scenario(house: House) -> None:
        base: dict[str, object] = {"messages": user("Hi")} if path == CHAT else {"prompt": "Hi"}
        reply = await house.post(path, {**base, **fields})  # type: ignore[dict-item]
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["message"] == f"`{name}` is not supported by this server yet"
        assert (error["param"], error["type"]) == (name, "invalid_request_error")

    in_house(scenario)


INVALID = [
    (CHAT, {}, "messages"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, "messages"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    (CHAT, {"messages": user("x"), "top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"messages": user("x"), "temperature": 2.5}, "temperature"),
    (CHAT, {"messages": user("x"), "n": 9}, "n"),
    (CHAT, {"messages": user("x"), "max_tokens": 5000}, "max_completion_tokens"),
    (CHAT, {"messages": user("x"), "logit_bias": {"a": 1}}, "logit_bias"),
    (CHAT, {"messages": user("x"), "logit_bias": {"999": 1}}, "logit_bias"),
    (CHAT, {"messages": user("x"), "model": "no way!"}, "model"),
    (COMPLETIONS, {}, "prompt"),
    (COMPLETIONS, {"prompt": ""}, "prompt"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt"),
    (COMPLETIONS, {"prompt": [999]}, "prompt"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 21}, "logprobs"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
    (COMPLETIONS, {"prompt": "x", "n": 2, "best_of": 1}, "best_of"),
    (COMPLETIONS, {"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
]


@pytest.mark.parametrize(("path", "body", "parameter"), INVALID, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(in_house: InHouse, path: str, body: object, parameter: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(path, body)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == parameter

    in_house(scenario)


def test_harmless_defaults_pass(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        names = ("temperature", "n", "stop", "tools", "tool_choice", "response_format", "seed", "logit_bias", "stream")
        harmless = {"tools": [], "tool_choice": "none", "modalities": ["text"], "response_format": {"type": "text"}}
        for fields in (dict.fromkeys(names), harmless, {"user": "u", "metadata": {}, "store": False}):
            reply = await house.post(CHAT, {"messages": user("Hi"), **fields})
            assert reply.status_code == 200, reply.text

    in_house(scenario)


def test_content_parts_and_developer_messages(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        parts = [{"type": "text", "text": "SAY:"}, {"type": "text", "text": "ok"}]
        messages = [{"role": "developer", "content": "be nice"}, {"role": "user", "content": parts}]
        reply = (await house.post(CHAT, {"messages": messages})).json()
        assert reply["choices"][0]["message"]["content"] == "ok"

    in_house(scenario)


def test_the_template_s_own_words_reach_the_caller(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post(CHAT, {"messages": user("RAISE")})
        assert reply.status_code == 400
        assert reply.json()["error"]["code"] == "template_error"
        assert "told to raise" in reply.json()["error"]["message"]

    in_house(scenario)


def test_models_are_listed_and_found(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        listed = (await house.client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["tiny", "team/tone", "triage"]
        assert [model["parent"] for model in listed["data"]] == [None, "tiny", "tiny"]
        page = (await house.client.get("/v1/models?limit=2")).json()
        assert ([model["id"] for model in page["data"]], page["has_more"]) == (["tiny", "team/tone"], True)
        rest = (await house.client.get("/v1/models?limit=2&after=team/tone")).json()
        assert ([model["id"] for model in rest["data"]], rest["has_more"]) == (["triage"], False)
        for wrong in ("limit=0", "limit=10001", "after=nobody"):
            assert (await house.client.get(f"/v1/models?{wrong}")).status_code == 400
        for path in ("tiny", "team/tone", "team%2Ftone"):
            assert (await house.client.get(f"/v1/models/{path}")).status_code == 200
        for path in ("nobody", "..%2Fx"):
            reply = await house.client.get(f"/v1/models/{path}")
            assert reply.status_code == 404
            assert reply.json()["error"]["code"] == "model_not_found"

    in_house(scenario)
