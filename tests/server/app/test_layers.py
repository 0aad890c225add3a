"""The layers around the routes: what an event of a stream passes, and what each layer leaves to the others."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from manylora.clock import SystemClock
from manylora.server.app.starting import StartingApp
from tests.server.asgi_client import Caller
from tests.server.conftest import House


def files_up_to(function: str) -> list[str]:
    """The files of the functions that wait for the caller of this one, up to one of that name."""
    frame: FrameType | None = sys._getframe(2)
    files = []
    while frame is not None and frame.f_code.co_name != function:
        files.append(Path(frame.f_code.co_filename).name)
        frame = frame.f_back
    assert frame is not None, function
    return files


def test_an_event_of_a_stream_passes_one_layer(in_house: Callable[..., None]) -> None:
    """The framework's layers, which wrap `send` as well, do not look at each token."""
    passed: list[list[str]] = []

    class Watching(Caller):
        async def _send(self, message: dict[str, Any]) -> None:
            if message.get("more_body"):
                passed.append(files_up_to("send_event"))
            await super()._send(message)

    async def scenario(house: House) -> None:
        caller = Watching("/generate_stream", {"inputs": "SAY:abc"})
        await caller.run(house.app)
        assert passed
        assert all(files == ["state.py"] for files in passed), passed

    in_house(scenario)


def test_a_wrong_body_of_an_unknown_path_is_refused_for_the_body(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        json_type = {"content-type": "application/json"}
        for content, headers, status in (
            (b"x" * 5000, json_type, 413),
            (b"x" * 50_000, json_type, 413),
            (b"x", {}, 415),
            (b"x", json_type, 404),
        ):
            reply = await house.client.post("/nothing", content=content, headers=headers)
            assert reply.status_code == status, reply.text

    in_house(scenario, max_body_bytes=4096)


def test_a_caller_that_leaves_while_sending_is_not_answered(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        sent: list[dict[str, Any]] = []
        parts: list[dict[str, Any]] = [
            {"type": "http.request", "body": b'{"inputs"', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> dict[str, Any]:
            return parts.pop(0)

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        caller = Caller("/generate", {})
        scope = {**caller.scope, "headers": [(b"content-type", b"application/json")]}
        await house.app(scope, receive, send)
        assert sent == []
        assert house.engine.submitted == []

    in_house(scenario)


def test_a_server_that_loads_its_model_answers_with_the_request_s_id(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        front = StartingApp(SystemClock())
        heads: list[dict[bytes, bytes]] = []

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                heads.append(dict(message["headers"]))

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        for path in ("/generate", "/health/"):
            scope = {**Caller(path, {}).scope, "headers": [(b"x-request-id", b"mine")]}
            await front(scope, receive, send)
        assert [head[b"x-request-id"] for head in heads] == [b"mine", b"mine"]
        assert all(head[b"x-manylora-version"] for head in heads)

    in_house(scenario)
