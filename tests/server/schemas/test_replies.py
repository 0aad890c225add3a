"""Replies of running routes, held against the types that the document shows."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter

from manylora.http.error_bodies import NativeError, OpenAIError
from manylora.server.schemas.adapters import AdapterPage
from manylora.server.schemas.info import HealthReply, InfoReply, UnhealthyReply
from manylora.server.schemas.lorax.replies import GenerateEvent, GenerateReply, TokenizedSpan
from manylora.server.schemas.openai.replies import ChatChunk, ChatReply, CompletionReply, ModelEntry, ModelPage
from tests.server.conftest import House

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
MANY_STREAMED = {"details": True, "return_k_alternatives": 2}
MANY = {"details": True, "best_of": 2, "do_sample": True, "return_k_alternatives": 2}


def assert_is(kind: Any, text: str | bytes) -> None:
    """Assert that JSON has the keys and types of `kind`, and no other keys: reading drops those."""
    adapter = TypeAdapter(kind)
    assert json.loads(adapter.dump_json(adapter.validate_json(text))) == json.loads(text)


def events_of(text: str) -> list[str]:
    lines = (line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: "))
    return [line for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/generate", {"inputs": "Hi"}, GenerateReply),
        ("/generate", {"inputs": "Hi", "parameters": MANY}, GenerateReply),
        ("/", {"inputs": "Hi", "parameters": {"details": True}}, list[GenerateReply]),
        ("/tokenize", {"inputs": "Hi"}, list[TokenizedSpan]),
        (COMPLETIONS, {"prompt": ["Hi", "x"], "logprobs": 2, "n": 2}, CompletionReply),
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}, ChatReply),
        ("/generate", {"inputs": 1}, NativeError),
        (COMPLETIONS, {"prompt": 1}, OpenAIError),
        ("/embed", {"inputs": ""}, NativeError),
        ("/v1/embeddings", {"input": ""}, OpenAIError),
    ],
)
def test_a_whole_reply_has_the_type_that_the_document_shows(
    in_house: Callable[..., None], path: str, body: object, kind: Any
) -> None:
    async def scenario(house: House) -> None:
        assert_is(kind, (await house.post(path, body)).text)

    in_house(scenario)


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        (
            "/generate_stream",
            {"inputs": "Hi", "parameters": {"details": True, "return_k_alternatives": 2}},
            GenerateEvent,
        ),
        (COMPLETIONS, {"prompt": "Hi", "stream": True, "stream_options": {"include_usage": True}}, CompletionReply),
        (CHAT, {"messages": MESSAGES, "stream": True, "logprobs": True, "top_logprobs": 1}, ChatChunk),
    ],
)
def test_each_event_of_a_stream_has_the_type_that_the_document_shows(
    in_house: Callable[..., None], path: str, body: object, kind: Any
) -> None:
    async def scenario(house: House) -> None:
        events = events_of((await house.post(path, body)).text)
        assert len(events) > 2
        for event in events:
            assert_is(kind, event)

    in_house(scenario)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/health", HealthReply),
        ("/info", InfoReply),
        ("/v1/models", ModelPage),
        ("/v1/models/tiny", ModelEntry),
        ("/v1/adapters", AdapterPage),
        ("/v1/nothing", OpenAIError),
        ("/nothing", NativeError),
    ],
)
def test_facts_have_the_type_that_the_document_shows(in_house: Callable[..., None], path: str, kind: Any) -> None:
    async def scenario(house: House) -> None:
        assert_is(kind, (await house.client.get(path)).text)

    in_house(scenario)


def test_an_unhealthy_server_has_the_reply_that_the_document_shows(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        house.app.admission.is_draining = True
        assert_is(UnhealthyReply, (await house.client.get("/health")).text)
        house.app.admission.is_draining = False

    in_house(scenario)
