"""A transport that a test moves by hand: operations lie in a list, and frames arrive when the test says so."""

from collections.abc import Callable
from pathlib import Path

from manylora.errors import ManyloraError, Unavailable
from manylora.server.engine_client.messages import Frame, Operation, StepFrame
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import FrameReceiver
from tests.server.fake_engine import served_for


class ManualTransport:
    """sent: operations without acknowledgements; acknowledged: numbers of frames; refusal: error of the next sends."""

    def __init__(self, on_send: Callable[[Operation], None] = lambda operation: None) -> None:
        self.sent: list[Operation] = []
        self.acknowledged: list[int] = []
        self.is_up = True
        self.refusal: ManyloraError | None = None
        self._on_send = on_send

    @property
    def served(self) -> ServedModel:
        return served_for(Path())

    async def start(self, receiver: FrameReceiver) -> None:
        self.receiver = receiver

    def send(self, operation: Operation) -> None:
        if self.refusal is not None:
            raise self.refusal
        if not self.is_up:
            raise Unavailable("the engine is not running")
        self.sent.append(operation)
        self._on_send(operation)

    def arrive(self, frame: Frame) -> None:
        """Do a transport's duty with a frame."""
        self.receiver.receive(frame)
        if isinstance(frame, StepFrame):
            self.acknowledged.append(frame.number)

    async def close(self) -> None:
        self.is_up = False

    async def kill(self) -> None:
        self.is_up = False
