"""A frame that the edge cannot record: none of its tokens is delivered, and its requests end with the reason."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest

from manylora.clock import ManualClock
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request
from manylora.errors import Overloaded, UsageUnrecorded
from manylora.ids import PROBE_FLOW
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.messages import AbortRequest, StepFrame, SubmitRequest, UndeliveredCount
from manylora.server.engine_client.streams import SequenceStream
from tests.server.manual_transport import ManualTransport
from tests.server.metering.frames import end, request

FULL = UsageUnrecorded("usage cannot be written down: No space left on device")


class FullRecord:
    """A record whose disk takes what `room` says."""

    def __init__(self) -> None:
        self.has_room = True
        self.begun: list[int] = []

    def begin(self, index: int, request: Request) -> None:
        if not self.has_room:
            raise FULL
        self.begun.append(index)

    def withdraw(self, index: int) -> None:
        self.begun.remove(index)

    def write(self, frame: StepFrame) -> None:
        if not self.has_room:
            raise FULL

    @property
    def recorded(self) -> Mapping[str, int]:
        return {}

    def note_link(self, link: str) -> None:
        pass

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        if not self.has_room:
            raise FULL


Scenario = Callable[[EngineClient, ManualTransport, FullRecord], Coroutine[Any, Any, None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        transport, record = ManualTransport(), FullRecord()
        client = EngineClient(transport, clock=ManualClock(), record=record)
        await client.start()
        await scenario(client, transport, record)

    asyncio.run(main())


def reason_of(stream: SequenceStream) -> tuple[FinishReason, str | None]:
    assert isinstance(stream.finished, Finished)
    failure = stream.finished.failure
    return stream.finished.reason, None if failure is None else failure.message


def test_its_requests_end_with_the_reason_and_are_aborted() -> None:
    async def scenario(client: EngineClient, transport: ManualTransport, record: FullRecord) -> None:
        names = ("running", "ended", "left", "probe")
        flows = {"probe": PROBE_FLOW}
        streams = {name: client.generate(request(name, flow=flows.get(name, "acme"))) for name in names}  # type: ignore[arg-type]
        indexes = [stream.index for stream in streams.values()]
        transport.arrive(StepFrame(1, indexes, [65] * 4))
        record.has_room = False
        ends = [
            (streams["ended"].index, end("ended", 2)),
            (streams["left"].index, end("left", 2, reason=FinishReason.DISCONNECT)),
        ]
        transport.arrive(StepFrame(2, indexes, [66] * 4, finished=ends))
        failed = (FinishReason.ENGINE_FAILURE, FULL.message)
        assert reason_of(streams["running"]) == reason_of(streams["ended"]) == failed
        assert reason_of(streams["left"]) == (FinishReason.DISCONNECT, None)
        assert {name: stream.num_tokens for name, stream in streams.items()} == {
            "running": 1,
            "ended": 1,
            "left": 1,
            "probe": 2,
        }
        aborts = [operation for operation in transport.sent if isinstance(operation, AbortRequest)]
        assert aborts == [AbortRequest(streams["running"].index, FinishReason.ENGINE_FAILURE)]
        assert transport.acknowledged == [1, 2], "the engine goes on"
        assert client.num_in_flight == 1
        transport.arrive(StepFrame(3, [streams["running"].index], [67]))
        assert streams["running"].num_tokens == 1

    run(scenario)


def test_no_request_reaches_the_engine_while_nothing_can_be_recorded() -> None:
    async def scenario(client: EngineClient, transport: ManualTransport, record: FullRecord) -> None:
        record.has_room = False
        with pytest.raises(UsageUnrecorded, match="No space left"):
            client.generate(request("a"))
        assert (transport.sent, client.num_in_flight) == ([], 0)
        record.has_room = True
        client.generate(request("b"))
        assert [type(operation) for operation in transport.sent] == [SubmitRequest]

    run(scenario)


def test_a_request_that_does_not_reach_the_engine_leaves_the_record() -> None:
    async def scenario(client: EngineClient, transport: ManualTransport, record: FullRecord) -> None:
        transport.refusal = Overloaded("Model is overloaded")
        with pytest.raises(Overloaded):
            client.generate(request("a"))
        assert (record.begun, client.num_in_flight) == ([], 0)

    run(scenario)
