"""The examples of the OpenAPI document: each inference route has one, and each is true when it is sent."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from manylora.http.paths import SERVER_ROUTES
from manylora.server.schemas.examples import EXAMPLES
from tests.server.conftest import House

InHouse = Callable[..., None]
OTHERS = ("/v1/files", "/v1/batches", "/v1/conversations", "/v1/responses/", "/v1/adapters", "/v2", "/v1/v2")
FREE = {"metadata", "timings"}  # objects whose keys are not fixed


def form(value: object) -> object:
    """The keys and the types in a value; of a list, those of its first item."""
    if isinstance(value, dict):
        return {key: {} if key in FREE else form(each) for key, each in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def last_event(text: str) -> Any:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    return json.loads(lines[-1])


def test_every_inference_route_has_an_example_in_the_document(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        paths = (await house.client.get("/openapi.json")).json()["paths"]
        documented = {path for path, method in SERVER_ROUTES.documented(is_operator=True) if method == "post"}
        assert EXAMPLES.keys() == {f"POST {path}" for path in documented if not path.startswith(OTHERS)}
        for name, example in EXAMPLES.items():
            operation = paths[name.partition(" ")[2]]["post"]
            assert operation["requestBody"]["content"]["application/json"]["example"] == example.request
            shown = operation["responses"]["200"]["content"]
            assert shown.get("application/json", {}).get("example") == example.reply
            assert shown.get("text/event-stream", {}).get("example") == example.event

    in_house(scenario)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_accepted_and_its_reply_has_the_form_of_the_real_one(in_house: InHouse, name: str) -> None:
    example, path = EXAMPLES[name], name.partition(" ")[2]

    async def scenario(house: House) -> None:
        if example.reply is not None:
            reply = await house.post(path, example.request)
            assert reply.status_code == 200, reply.text
            assert form(reply.json()) == form(example.reply)
        if example.event is not None:
            body = example.request if path == "/generate_stream" else {**example.request, "stream": True}
            reply = await house.post(path, body)
            assert reply.status_code == 200, reply.text
            assert form(last_event(reply.text)) == form(example.event)

    in_house(scenario)
