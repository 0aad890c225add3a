"""The loop around an engine, turned by hand: how long it sleeps, and that adapters move while nobody asks."""

from pathlib import Path

from manylora.clock import ManualClock
from manylora.models.tokenizer import Tokenizer
from manylora.server.driver import IDLE_WAIT_S, TENDING_WAIT_S, drive
from manylora.server.wire import Frame, Operation, Stop
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
    """Nothing arrives for so many waits, then `Stop`; `waits_s` has how long each would have been."""

    def __init__(self, num_waits: int) -> None:
        self.waits_s: list[float] = []
        self._num_waits = num_waits

    def receive(self, wait_s: float) -> list[Operation]:
        self.waits_s.append(wait_s)
        return [Stop()] if len(self.waits_s) > self._num_waits else []

    def send(self, frame: Frame) -> None:
        pass


def test_an_idle_engine_is_tended_and_sleeps_a_second_unless_adapters_are_under_way(tmp_path: Path) -> None:
    engine, port = TendedEngine(tmp_path, busy_for=3), ScriptedPort(6)
    drive(engine, port, ManualClock())
    assert engine.tended == 6
    assert port.waits_s == [0.0, *[TENDING_WAIT_S] * 3, *[IDLE_WAIT_S] * 3]
