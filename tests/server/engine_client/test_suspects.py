"""Requests under suspicion of an engine's death, and the time that it lasts."""

import asyncio

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import ManualClock
from manylora.engine.events import Finished, FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import EngineFault, RankLost, Unavailable
from manylora.ids import PROBE_FLOW, Flow, mint_request_id
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.messages import StepFrame
from manylora.server.engine_client.suspects import MAX_SUSPECTS, SUSPICION_S, Suspects
from manylora.usage import Counts
from tests.server.manual_transport import ManualTransport


def request(token: int, adapter: str | None = None, flow: Flow = Flow("t")) -> Request:  # noqa: B008  a name, no state
    return Request(
        id=mint_request_id(),
        flow=flow,
        salt="",
        tokens=(token,),
        adapter=None if adapter is None else AdapterRef(SourceName.LOCAL, adapter),
        sampling=SamplingParams(temperature=0.0),
        stop=StopParams(max_new_tokens=1),
    )


def test_two_deaths_are_fatal_and_the_prompt_and_adapter_make_the_request() -> None:
    suspects = Suspects(ManualClock())
    suspects.blame([request(1), request(1), request(2)])
    assert not suspects.is_poison(request(1))
    assert isinstance(suspects.verdict(request(1)), Unavailable)
    suspects.blame([request(1)])
    assert suspects.is_poison(request(1))
    assert isinstance(suspects.verdict(request(1)), EngineFault)
    assert not suspects.is_poison(request(1, "a"))
    assert not suspects.is_poison(request(2))


def test_a_good_end_and_time_clear_a_request() -> None:
    clock = ManualClock()
    suspects = Suspects(clock)
    for _ in range(2):
        suspects.blame([request(1), request(2)])
    suspects.acquit(request(1))
    assert not suspects.is_poison(request(1))
    clock.advance(SUSPICION_S)
    assert suspects.is_poison(request(2))
    clock.advance(1)
    assert not suspects.is_poison(request(2))


def test_the_oldest_suspects_make_room() -> None:
    suspects = Suspects(ManualClock())
    for _ in range(2):
        suspects.blame([request(0)])
    suspects.blame(request(token) for token in range(1, MAX_SUSPECTS + 1))
    assert not suspects.is_poison(request(0))


def test_the_server_s_own_probe_is_never_a_suspect() -> None:
    async def scenario() -> None:
        transport = ManualTransport()
        client = EngineClient(transport, clock=ManualClock())
        await client.start()
        for probe in (False, True, False):
            flow = PROBE_FLOW if probe else Flow("acme")
            client.generate(request(0, flow=flow))
            client.lose(FinishReason.ENGINE_FAILURE)
        with pytest.raises(EngineFault):
            client.generate(request(0))

    asyncio.run(scenario())


def test_the_loss_of_ranks_makes_no_suspect() -> None:
    async def scenario() -> None:
        client = EngineClient(ManualTransport(), clock=ManualClock())
        await client.start()
        for _ in range(3):
            stream = client.generate(request(0))
            client.lose(FinishReason.ENGINE_FAILURE, RankLost("the engine has lost rank 1; repeat the request"))
            assert stream.finished is not None
            assert stream.finished.failure is not None
            assert isinstance(stream.finished.failure.to_error(), RankLost)

    asyncio.run(scenario())


def test_a_request_that_ends_well_is_acquitted() -> None:
    async def scenario() -> None:
        transport = ManualTransport()
        client = EngineClient(transport, clock=ManualClock())
        await client.start()
        for _ in range(3):
            client.generate(request(0))
            client.lose(FinishReason.ENGINE_FAILURE)
            stream = client.generate(request(0))
            counts = Counts(prompt_tokens=1, cached_tokens=0, completion_tokens=0)
            end = Finished(request_id=stream.request.id, reason=FinishReason.LENGTH, counts=counts)
            transport.arrive(StepFrame(1, finished=[(stream.index, end)]))

    asyncio.run(scenario())
