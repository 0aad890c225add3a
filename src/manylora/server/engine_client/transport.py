"""The transport protocol: a transport carries operations from a client to its engine, and frames back.

`in_process.py` implements it for an engine in a thread, `process/transport.py` for an engine in its own process, and
`fleet/edge/transport.py` for several engines on other machines.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from manylora.engine.events import FinishReason
from manylora.errors import ManyloraError
from manylora.server.engine_client.messages import Frame, Operation, UndeliveredCount
from manylora.server.engine_client.served_model import ServedModel

STOP_WAIT_S = 10.0
SHUTTING_DOWN = "the server is shutting down; repeat the request"


class FrameReceiver(Protocol):
    """The client's side of a transport. `client.EngineClient` implements it."""

    def receive(self, frame: Frame) -> bool:
        """Take a frame: record and deliver all of it before returning.

        Returns: false if the frame cannot be recorded. Its requests have ended with `UsageUnrecorded`, and none of its
                 tokens is delivered
        """

    def lose(self, reason: FinishReason, fault: ManyloraError | None = None) -> None:
        """End every request with `reason`, since the engine is gone. `fault` replaces each request's own error."""

    def lose_some(self, indexes: Collection[int], *, is_suspect: bool) -> list[int]:
        """Take the loss of one engine of several, with the requests of these indexes.

        Args:    is_suspect  one of the requests may have ended the engine
        Returns: the requests that another engine may serve: they have no token, and are not suspected of two deaths.
                 All others have ended
        """

    @property
    def recorded(self) -> Mapping[str, int]:
        """The number of the last recorded `StepFrame` of each link, of this edge and of earlier ones on this disk."""

    def note_link(self, link: str) -> None:
        """Take the beginning of a link's name, before the first frame of any such link."""

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """Record counts that have no edge; return once they are on the disk. Raises `UsageUnrecorded`."""

    def expire(self, max_queue_s: float) -> None:
        """End the requests that have waited longer than `max_queue_s` seconds for their first token."""

    @property
    def silent_s(self) -> float:
        """Seconds since the engine's last frame; 0 while it has no work."""


class Transport(Protocol):
    """The transport to one engine. All methods belong to one event loop.

    Duties: frames reach the receiver in their order. When `receive` has returned from a `StepFrame`, the transport
    sends its `AcknowledgeFrame`, which it must not drop. When the engine is gone, the transport calls `lose`.

    A host of a fleet keeps the counts of a frame until its acknowledgement. Its transport breaks the connection
    instead of acknowledging a frame that is not recorded.
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
