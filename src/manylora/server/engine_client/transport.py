"""The seam between a client and its engine: a transport carries operations there and frames back.

A thread of this process (`in_process.py`) and a process of its own (`process/transport.py`) implement it. A socket to
another machine has the same duties.
"""

from typing import Protocol

from manylora.engine.events import FinishReason
from manylora.errors import ManyloraError
from manylora.server.engine_client.messages import Frame, Operation
from manylora.server.engine_client.served_model import ServedModel

STOP_WAIT_S = 10.0
SHUTTING_DOWN = "the server is shutting down; repeat the request"


class FrameReceiver(Protocol):
    """The client's side of a transport; `client.EngineClient` is the real one."""

    def receive(self, frame: Frame) -> None:
        """Take a frame: record and deliver all of it before returning."""

    def lose(self, reason: FinishReason, fault: ManyloraError | None = None) -> None:
        """End every request with `reason`, because the engine is gone; `fault` replaces the error of each."""

    def expire(self, max_queue_s: float) -> None:
        """End the requests without a token that wait for longer than `max_queue_s` seconds."""

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame; 0 while it has no work."""


class Transport(Protocol):
    """A way to one engine. All methods belong to one event loop.

    Duties: frames reach the receiver in their order. When `receive` has returned from a `StepFrame`, the transport
    sends its `AcknowledgeFrame`, which it must not drop. When the engine is gone, the transport calls `lose`.
    """

    async def start(self, receiver: FrameReceiver) -> None:
        """Bring the engine up. Raises `StartupError` if it cannot be built."""

    @property
    def served(self) -> ServedModel:
        """The model that the engine serves. Raises `Unavailable` before `start` has returned."""

    @property
    def is_up(self) -> bool:
        """Return whether the engine takes requests."""

    def send(self, operation: Operation) -> None:
        """Send at once. Raises `Unavailable` while the engine is down, `Overloaded` if too much is queued."""

    async def close(self) -> None:
        """End every request with SHUTDOWN and let the engine go. A second call does nothing."""

    async def kill(self) -> None:
        """End every request with SHUTDOWN without waiting for the engine; `close` must follow."""
