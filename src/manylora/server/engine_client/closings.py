"""The closings of tenants: each engine drops what it has compiled for a tenant once that is closed."""

import asyncio
import logging
from collections.abc import Sequence

from manylora.errors import ManyloraError
from manylora.ids import Flow, TenantId
from manylora.server.engine_client.client import EngineClient

log = logging.getLogger(__name__)


class TenantClosings:
    """Sends the closings of tenants to engines. It belongs to one event loop; its tasks end with the engines."""

    def __init__(self, engines: Sequence[EngineClient]) -> None:
        self._engines = tuple(engines)
        self._tasks: set[asyncio.Task[None]] = set()

    def note(self, tenants: Sequence[TenantId]) -> None:
        """Let each engine drop the compiled grammars of closed tenants. Does not wait."""
        flows = tuple(Flow(tenant) for tenant in tenants)
        for engine in self._engines:
            task = asyncio.create_task(_drop(engine, flows))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _drop(engine: EngineClient, flows: Sequence[Flow]) -> None:
    try:
        await engine.drop_grammars(flows)
    except ManyloraError as error:  # an engine that is gone has none; behind a full queue they go by their age
        log.info("grammars.not_dropped tenants=%d error=%s", len(flows), error.message)
