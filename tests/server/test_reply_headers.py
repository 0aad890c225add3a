"""The times in the headers of a reply, on a clock that the test moves."""

from collections.abc import Callable

import pytest

from manylora.clock import ManualClock
from manylora.engine.request import Request
from manylora.server.generation import Generation
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

        def hand_over_slowly(request: Request) -> Generation:
            generation = hand_over(request)
            clock.advance(5.0)
            return generation

        house.link.generate = hand_over_slowly  # type: ignore[method-assign]  # the link of this test alone
        reply = await house.post(path, BODIES[path])
        assert reply.status_code == 200
        assert int(reply.headers["x-validation-time"]) == 0
        assert int(reply.headers["x-time-to-first-token"]) == 5000

    in_house(scenario, clock=clock)
