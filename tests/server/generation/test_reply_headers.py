"""The times in the headers of a reply, on a clock that the test moves."""

import asyncio
from collections.abc import Callable

import httpx2
import pytest

from manylora import __version__
from manylora.clock import ManualClock
from manylora.engine.request import Request
from manylora.server.app.starting import StartingApp
from manylora.server.engine_client.streams import SequenceStream
from tests.server.conftest import House

InHouse = Callable[..., None]
BODIES = {
    "/generate": {"inputs": "SAY:hello"},
    "/generate_stream": {"inputs": "SAY:hello"},
    "/v1/completions": {"prompt": "SAY:hello"},
}


@pytest.mark.parametrize("path", BODIES)
def test_validation_ends_before_a_request_is_handed_to_the_engine(in_house: InHouse, path: str) -> None:
    """The engine counts the queue time from then on, so that no moment belongs to both."""
    clock = ManualClock()

    async def scenario(house: House) -> None:
        hand_over = house.link.generate

        def hand_over_slowly(request: Request) -> SequenceStream:
            generation = hand_over(request)
            clock.advance(5.0)
            return generation

        house.link.generate = hand_over_slowly  # type: ignore[method-assign]  # the link of this test alone
        reply = await house.post(path, BODIES[path])
        assert reply.status_code == 200
        assert int(reply.headers["x-validation-time"]) == 0
        assert int(reply.headers["x-time-to-first-token"]) == 5000

    in_house(scenario, clock=clock)


def test_each_reply_says_that_a_manylora_server_gives_it(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for method, path in (("GET", "/ready"), ("GET", "/no/such"), ("PATCH", "/generate"), ("POST", "/generate")):
            reply = await house.client.request(method, path, content=b"no JSON")
            assert reply.headers.get_list("x-manylora-version") == [__version__]

    in_house(scenario)


def test_a_server_that_is_loading_says_it_too() -> None:
    async def scenario() -> None:
        transport = httpx2.ASGITransport(StartingApp(ManualClock()))  # type: ignore[arg-type]  # ASGI, with our own names of its types
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for path in ("/ready", "/v1/account"):
                reply = await client.get(path)
                assert (reply.status_code, reply.headers["x-manylora-version"]) == (503, __version__)

    asyncio.run(scenario())
