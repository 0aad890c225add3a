"""The regular measurement of a replica's engine."""

import asyncio
import logging
from typing import Protocol

log = logging.getLogger(__name__)


class Observed(Protocol):
    """An engine that is measured."""

    async def observe(self) -> None:
        """Measure once."""


async def observe_on(engine: Observed, every_s: float) -> None:
    """Measure every `every_s` seconds; it never returns, and no error ends it."""
    while True:
        try:
            await engine.observe()
        except Exception:  # no code awaits this task, and routers would go by its last numbers for ever
            log.exception("replica.observe_failed")
        await asyncio.sleep(every_s)
