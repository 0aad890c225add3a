"""Who is suspected of an engine's death, and for how long."""

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import EngineFault, Unavailable
from manylora.ids import PROBE_FLOW, Flow, mint_request_id
from manylora.server.engine_client.client import Desk
from manylora.server.engine_client.suspects import MAX_SUSPECTS, SUSPICION_S, Suspects


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
    desk = Desk(ManualClock())
    for _ in range(3):
        desk.open(request(0, flow=PROBE_FLOW), lambda operation: None)
        desk.open(request(0), lambda operation: None)
        desk.suspects.acquit(request(0))
        desk.lose(FinishReason.ENGINE_FAILURE)
    assert not desk.suspects.is_poison(request(0))
    for _ in range(2):
        desk.open(request(0, flow=PROBE_FLOW), lambda operation: None)
        desk.lose(FinishReason.ENGINE_FAILURE)
    assert not desk.suspects.is_poison(request(0, flow=PROBE_FLOW))
