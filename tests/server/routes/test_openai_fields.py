"""Every field of OpenAI's requests: applied, accepted unread, or refused by its name; null is as absent."""

from collections.abc import Callable
from typing import Any

import pytest

from manylora.server.schemas.openai.chat import ChatBody
from manylora.server.schemas.openai.completions import CompletionBody
from manylora.server.schemas.openai.messages import ChatMessage
from manylora.server.schemas.openai.shared import RouteBody, StreamOptions
from manylora.server.schemas.openai.tools import FunctionDefinition
from tests.clients.scripts.openai_fields import (
    CHAT,
    COMPLETION,
    FUNCTION_FIELDS,
    MESSAGE_FIELDS,
    STREAM_OPTIONS,
    Outcome,
)
from tests.server.conftest import House

InHouse = Callable[..., None]
LEAST: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": CHAT["messages"][0]},
    "/v1/completions": {"prompt": "Hi"},
}
SENT = [
    *(("/v1/chat/completions", name, value, outcome) for name, (value, outcome) in CHAT.items()),
    *(("/v1/completions", name, value, outcome) for name, (value, outcome) in COMPLETION.items()),
]


async def outcome_of(house: House, path: str, name: str, value: object) -> Outcome:
    """The outcome that a reply tells; a field that is null is as absent."""
    beside = {"stream": True} if name == "stream_options" else {}
    reply = await house.post(path, {**LEAST[path], **beside, name: value})
    absent = await house.post(path, {name: None, **LEAST[path]})
    assert absent.status_code == 200, absent.text
    if reply.status_code == 200:
        return "applied"
    assert reply.status_code == 400, (path, name, reply.text)
    assert reply.json()["error"]["param"] == name
    assert f"`{name}`" in reply.json()["error"]["message"]
    return "refused"


def test_each_field_has_its_outcome(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path, name, value, outcome in SENT:
            expected = "refused" if outcome == "refused" else "applied"  # a field that is not read is accepted alike
            assert await outcome_of(house, path, name, value) == expected, (path, name, value)

    in_house(scenario)


@pytest.mark.parametrize(
    ("model", "fields"), [(ChatBody, CHAT), (CompletionBody, COMPLETION)], ids=["chat", "completions"]
)
def test_outcomes_are_those_of_the_models(model: type[RouteBody], fields: dict[str, tuple[Any, Outcome]]) -> None:
    found = {"applied": model.names(), "unread": model.rules.unread, "refused": model.rules.refused.keys()}
    for name, (_, outcome) in fields.items():
        assert [each for each, names in found.items() if name in names] == [outcome], name


def test_objects_within_a_request_have_rules_for_every_field() -> None:
    for name, (_, outcome) in STREAM_OPTIONS.items():
        assert (name in StreamOptions.names()) == (outcome == "applied")
        assert (name in StreamOptions.rules.refused) == (outcome == "refused")
    assert set().union(*MESSAGE_FIELDS.values()) <= ChatMessage.names() | ChatMessage.rules.refused.keys()
    assert FunctionDefinition.names() == FUNCTION_FIELDS


def test_the_tier_is_told_where_it_is_asked_for(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        path = "/v1/chat/completions"
        for asked, told in (("auto", "default"), ("flex", "default"), (None, None)):
            reply = await house.post(path, {**LEAST[path], "service_tier": asked})
            assert reply.json().get("service_tier") == told
        wrong = await house.post(path, {**LEAST[path], "service_tier": "gold"})
        assert "auto, default, flex" in wrong.json()["error"]["message"]

    in_house(scenario)
