"""The loop around an engine, turned by hand: its waits, its frames, and adapters that move without a request."""

from pathlib import Path

from manylora.clock import ManualClock
from manylora.engine.events import FinishReason
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import Flow, RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.loop import IDLE_WAIT_S, TENDING_WAIT_S, run_engine_loop
from manylora.server.engine_client.messages import (
    AbortRequest,
    AcknowledgeFrame,
    Frame,
    Operation,
    StepFrame,
    StopEngine,
    SubmitRequest,
)
from tests.server.fake_engine import FakeEngine
from tests.server.tiny_tokenizer import save_tokenizer


class TendedEngine(FakeEngine):
    """Has adapters under way for the first few times it is tended."""

    def __init__(self, directory: Path, busy_for: int) -> None:
        save_tokenizer(directory)
        super().__init__(Tokenizer(directory, model_id="tiny"))
        self.busy_for = busy_for
        self.tended = 0

    def tend(self) -> bool:
        self.tended += 1
        return self.tended <= self.busy_for


class ScriptedConnection:
    """Nothing arrives for so many waits, then `StopEngine`; `waits_s` has how long each would have been."""

    def __init__(self, num_waits: int) -> None:
        self.waits_s: list[float] = []
        self.is_open = True
        self._num_waits = num_waits

    def receive(self, wait_s: float) -> list[Operation]:
        self.waits_s.append(wait_s)
        return [StopEngine()] if len(self.waits_s) > self._num_waits else []

    def send(self, frame: Frame) -> None:
        pass


def test_an_idle_engine_is_tended_and_sleeps_a_second_unless_adapters_are_under_way(tmp_path: Path) -> None:
    engine, connection = TendedEngine(tmp_path, busy_for=3), ScriptedConnection(6)
    run_engine_loop(engine, connection, ManualClock())
    assert engine.tended == 6
    assert connection.waits_s == [0.0, *[TENDING_WAIT_S] * 3, *[IDLE_WAIT_S] * 3]


class QueuedConnection(ScriptedConnection):
    """Each wait brings the next arrivals; then `StopEngine` and the acknowledgement of the last frame.

    frames  (waits so far, frame) of each step frame sent
    """

    def __init__(self, *arrivals: list[Operation]) -> None:
        super().__init__(0)
        self._arrivals = list(arrivals)
        self.frames: list[tuple[int, StepFrame]] = []

    def receive(self, wait_s: float) -> list[Operation]:
        self.waits_s.append(wait_s)
        if self._arrivals:
            return self._arrivals.pop(0)
        return [StopEngine(), AcknowledgeFrame(len(self.frames))]

    def send(self, frame: Frame) -> None:
        if isinstance(frame, StepFrame):
            self.frames.append((len(self.waits_s), frame))


def submit(index: int, prompt: str) -> SubmitRequest:
    request = Request(
        id=RequestId(f"request {index}"),
        flow=Flow("acme"),
        salt="",
        tokens=tuple(prompt.encode()),
        adapter=None,
        sampling=SamplingParams(),
        stop=StopParams(max_new_tokens=9),
    )
    return SubmitRequest(index, request)


def test_no_frame_leaves_before_the_one_before_it_is_acknowledged(tmp_path: Path) -> None:
    engine = TendedEngine(tmp_path, busy_for=0)
    connection = QueuedConnection([submit(7, "SAY:hi")], [], [], [], [AcknowledgeFrame(1)], [], [AcknowledgeFrame(2)])
    run_engine_loop(engine, connection, ManualClock())
    sent = [(arrivals, frame.number, frame.indexes) for arrivals, frame in connection.frames]
    assert sent == [(1, 1, [7]), (5, 2, [7]), (7, 3, [7])]
    (index, end) = connection.frames[-1][1].finished[0]
    assert (index, end.request_id, end.reason) == (7, "request 7", FinishReason.END_OF_SEQUENCE)


def test_what_arrives_while_a_frame_waits_is_taken_at_once(tmp_path: Path) -> None:
    engine = TendedEngine(tmp_path, busy_for=0)
    late: list[Operation] = [
        submit(8, "SAY:x"),
        AbortRequest(7, FinishReason.DISCONNECT),
        AbortRequest(99, FinishReason.ABORT),
    ]
    connection = QueuedConnection([submit(7, "HOLD")], [], late, [AcknowledgeFrame(1)])
    run_engine_loop(engine, connection, ManualClock())
    assert [request.id for request in engine.submitted] == ["request 7", "request 8"]
    ends = {index: end.reason for _, frame in connection.frames for index, end in frame.finished}
    assert ends == {7: FinishReason.DISCONNECT, 8: FinishReason.SHUTDOWN}


def test_a_client_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    connection = QueuedConnection([submit(7, "HOLD")], [])
    connection.is_open = False
    run_engine_loop(TendedEngine(tmp_path, busy_for=0), connection, ManualClock())
    assert connection.frames[-1][1].finished[0][1].reason is FinishReason.SHUTDOWN
