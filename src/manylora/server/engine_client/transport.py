"""The transport protocol: a transport carries operations from a client to its engine, and frames back.

`in_process.py` implements it for an engine in a thread, `process/transport.py` for an engine in its own process. A
socket to another machine would have the same duties.
"""

from typing import Protocol

from manylora.engine.events import FinishReason
from manylora.errors import ManyloraError
from manylora.server.engine_client.messages import Frame, Operation
from manylora.server.engine_client.served_model import ServedModel

STOP_WAIT_S = 10.0
SHUTTING_DOWN = "the server is shutting down; repeat the request"


class FrameReceiver(Protocol):
    """The client's side of a transport. `client.EngineClient` implements it."""

    def receive(self, frame: Frame) -> None:
        """Take a frame: record and deliver all of it before returning."""

    def lose(self, reason: FinishReason, fault: ManyloraError | None = None) -> None:
        """End every request with `reason`, since the engine is gone. `fault` replaces each request's own error."""

    def expire(self, max_queue_s: float) -> None:
        """End the requests that have waited longer than `max_queue_s` seconds for their first token."""

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame; 0 while it has no work."""


class Transport(Protocol):
    """The transport to one engine. All methods belong to one event loop.

    Duties: frames reach the receiver in their order. When `receive` has returned from a `StepFrame`, the transport
    sends its `AcknowledgeFrame`, which it must not drop. When the engine is gone, the transport calls `lose`.
    """

    async def start(self, receiver: FrameReceiver) -> None:
        """Start the engine. Raises `StartupError` if it cannot be built."""

    @property
    def served(self) -> ServedModel:
        """The model that the engine serves. Raises `Unavailable` before `start` has returned."""

    @property
    def is_up(self) -> bool:
        """Return whether the engine takes requests."""

    def send(self, operation: Operation) -> None:
        """Send at once. Raises `Unavailable` while the engine is down, `Overloaded` if too many messages are queued."""

    async def close(self) -> None:
        """End every request with SHUTDOWN and stop the engine. A second call does nothing."""

    async def kill(self) -> None:
        """End every request with SHUTDOWN without waiting for the engine. `close` must follow."""
