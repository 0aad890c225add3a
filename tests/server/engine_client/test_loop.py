"""The loop around an engine, turned by hand: how long it sleeps, and that adapters move while nobody asks."""

import errno
import os
from collections import Counter
from pathlib import Path

import pytest

from manylora.clock import ManualClock
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.ids import PROBE_FLOW, Flow, RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.journal import Journal, read_journal
from manylora.server.engine_client.loop import IDLE_WAIT_S, TENDING_WAIT_S, drive
from manylora.server.engine_client.messages import Frame, Operation, Step, StopEngine, Submit
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


class ScriptedPort:
    """Nothing arrives for so many waits, then `StopEngine`; `waits_s` has how long each would have been."""

    def __init__(self, num_waits: int) -> None:
        self.waits_s: list[float] = []
        self._num_waits = num_waits

    def receive(self, wait_s: float) -> list[Operation]:
        self.waits_s.append(wait_s)
        return [StopEngine()] if len(self.waits_s) > self._num_waits else []

    def send(self, frame: Frame) -> None:
        pass


def test_an_idle_engine_is_tended_and_sleeps_a_second_unless_adapters_are_under_way(tmp_path: Path) -> None:
    engine, port = TendedEngine(tmp_path, busy_for=3), ScriptedPort(6)
    drive(engine, port, ManualClock())
    assert engine.tended == 6
    assert port.waits_s == [0.0, *[TENDING_WAIT_S] * 3, *[IDLE_WAIT_S] * 3]


class QueuedPort(ScriptedPort):
    """Each wait brings what is next in line; `frames` has what was told."""

    def __init__(self, *arrivals: list[Operation]) -> None:
        super().__init__(0)
        self._arrivals = list(arrivals)
        self.frames: list[Step] = []

    def receive(self, wait_s: float) -> list[Operation]:
        return self._arrivals.pop(0) if self._arrivals else [StopEngine()]

    def send(self, frame: Frame) -> None:
        if isinstance(frame, Step):
            self.frames.append(frame)


class FailingDisk:
    """In the place of `os.write`: fails for some writes of the journal."""

    def __init__(self, number: int, failing: range) -> None:
        self._number = number
        self._failing = failing
        self._write = os.write
        self._count = 0

    def __call__(self, descriptor: int, data: bytes) -> int:
        self._count += 1
        if self._count in self._failing:
            raise OSError(self._number, os.strerror(self._number))
        return self._write(descriptor, data)


def submit(name: str, prompt: str, flow: Flow = Flow("acme")) -> Submit:  # noqa: B008  a string
    stop = StopParams(max_new_tokens=9)
    tokens = tuple(prompt.encode())
    request = Request(
        id=RequestId(name), flow=flow, salt="", tokens=tokens, adapter=None, sampling=SamplingParams(), stop=stop
    )
    return Submit(request)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE])
def test_a_journal_that_fails_ends_requests_with_its_failure_and_nothing_else(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = TendedEngine(tmp_path, busy_for=0)
    journal = Journal(tmp_path, "00" * 8)
    monkeypatch.setattr("os.write", FailingDisk(number, range(2, 4)))
    both: list[Operation] = [submit("a", "HOLD"), submit("probe", "SAY:hi", PROBE_FLOW)]
    refused: list[Operation] = [submit("b", "SAY:hi")]
    taken: list[Operation] = [submit("c", "SAY:hi")]
    port = QueuedPort(both, [], refused, taken, *[[]] * 4)  # the second step and `b` meet the bad disk
    drive(engine, port, ManualClock(), journal)

    ends = {end.request_id: end for frame in port.frames for end in frame.events.finished}
    assert {name: end.reason.value for name, end in ends.items()} == {
        "a": "engine_failure",
        "b": "rejected",
        "c": "end_of_sequence",
        "probe": "end_of_sequence",
    }
    for name in "ab":
        failure = ends[RequestId(name)].failure
        assert failure is not None
        assert (failure.error, os.strerror(number) in failure.message) == ("UsageUnrecorded", True)
    tokens = Counter(token.request_id for frame in port.frames for token in frame.events.tokens)
    assert tokens == {"a": 1, "c": 3, "probe": 3}
    counted = read_journal(tmp_path, "00" * 8)
    assert {name: each.committed for name, each in counted.items()} == {"a": 1, "c": 3}
    assert not engine.live
