"""The requests of edges in the hub of a host."""

import asyncio
from dataclasses import replace
from pathlib import Path

from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from manylora.engine.request import Priority
from manylora.fleet.host.counts import CountKeeper
from manylora.fleet.host.hub import EngineHub
from manylora.server.engine_client.messages import AbortRequest, SubmitRequest
from tests.fleet.fleet_house import request
from tests.fleet.linked_edge import linked_edge
from tests.server.manual_transport import ManualTransport


def test_requests_of_batches_wait_for_their_first_token_without_a_limit(tmp_path: Path) -> None:
    async def main() -> None:
        clock, transport = ManualClock(), ManualTransport()
        hub = EngineHub(transport, CountKeeper(tmp_path), clock, base=lambda: "tiny")
        async with linked_edge("edge", clock) as edge:
            hub.submit(edge.link, SubmitRequest(0, replace(request("a"), priority=Priority.BATCH)))
            hub.submit(edge.link, SubmitRequest(1, request("b")))
            clock.advance(31.0)
            hub.expire(30.0)
            assert transport.sent[2:] == [AbortRequest(2, FinishReason.QUEUE_TIMEOUT)]
            assert edge.link.requests.keys() == {0}

    asyncio.run(main())
