"""`ReplicaCalls` over Ray Serve's deployment handles: errors of Ray become the project's own here."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection

from grpc import RpcError
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from manylora.cluster.signals import want_text
from manylora.cluster.views import Want
from manylora.errors import ManyloraError, Overloaded, Unavailable
from manylora.ids import ReplicaId
from manylora.ray_serve.each_replica import Answers, ask_each, running
from manylora.ray_serve.edge.handle_transport import LOST

log = logging.getLogger(__name__)

CARRIER_ERRORS = (RayError, RayServeException, RpcError)
"""The errors of a call that is lost or refused on its way, by any of the carriers that Serve may use."""
ASK_WAIT_S = 10.0
"""Seconds for the answer of each replica to a question to all of them: less than the client of the edge waits."""


class ServeCalls:
    """Calls of one edge to the replicas of one base. The needs of a request travel in the call's model id.

    Args: edge  the edge's own name, under which replicas count its calls
    """

    def __init__(self, handle: DeploymentHandle, edge: str) -> None:
        self._handle = handle
        self._edge = edge

    async def generate(self, want: Want, operation: bytes) -> AsyncGenerator[bytes, None]:
        """Send a request to the replica that serves it first, and yield its items. A close cancels the call."""
        handle = self._handle.options(stream=True, multiplexed_model_id=want_text(want))
        response = handle.generate.remote(self._edge, operation)
        is_over = False
        try:
            async for item in response:
                yield item
            is_over = True
        except CARRIER_ERRORS as error:
            is_over = True
            raise own_error(error) from error
        finally:
            if not is_over:
                response.cancel()

    async def ready(self) -> bytes:
        """Wait for a replica, and return its frame `EngineReady`."""
        try:
            frame: bytes = await self._handle.ready.remote()
        except CARRIER_ERRORS as error:
            raise own_error(error) from error
        return frame

    async def ask(self, want: Want, operation: bytes) -> bytes:
        """Ask the replica that such a request would go to."""
        handle = self._handle.options(multiplexed_model_id=want_text(want))
        response = handle.ask.remote(self._edge, operation)
        try:
            frame: bytes = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except CARRIER_ERRORS as error:
            raise own_error(error) from error
        return frame

    async def ask_all(
        self,
        operation: bytes,
        *,
        among: frozenset[ReplicaId] | None = None,
        known_silent: Collection[ReplicaId] = (),
    ) -> Answers:
        """As `ReplicaCalls.ask_all`."""
        question = ("answer", self._edge, operation, among)
        try:
            return await ask_each(self._handle, *question, within_s=ASK_WAIT_S, known_silent=known_silent)
        except CARRIER_ERRORS as error:
            log.info("fleet.no_answer error=%s", str(error).partition("\n")[0])
            return Answers(silent=tuple(sorted(running(self._handle))))


def own_error(error: Exception) -> ManyloraError:
    """Return the error of `errors/` for one of Ray: a full queue, the project's own error in a replica, or a loss."""
    if isinstance(error, BackPressureError):
        return Overloaded("Model is overloaded")
    if isinstance(error, RayTaskError) and isinstance(error.cause, ManyloraError):
        return error.cause
    log.warning("fleet.call_failed error=%s: %s", type(error).__name__, str(error).partition("\n")[0])
    return Unavailable(LOST)
