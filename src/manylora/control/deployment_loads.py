"""The reports of edges on their requests to dedicated deployments: those that this process has yet to store."""

import asyncio
from collections.abc import Iterable

from manylora.tenancy import DeploymentUse

FRESH_MS = 10_000
"""Time for which a report counts: an edge with requests to a deployment repeats it each second."""
SHARED_MS = 3_000
"""Time after which a report that says the same as the one before is stored again."""

Reported = tuple[str, str, str]
"""Edge, tenant and name of a deployment."""


class DeploymentLoads:
    """The reports that this process has stored last. An object belongs to one event loop."""

    def __init__(self) -> None:
        self._stored: dict[Reported, tuple[int, int]] = {}  # load, and the moment of its storing
        self.changed = asyncio.Event()
        """Set once a load is stored for a deployment without one, so that its start need not await the next round."""

    def due(self, edge: str, uses: Iterable[DeploymentUse], now_ms: int) -> list[DeploymentUse]:
        """Return the uses of an edge's report that must be stored: new loads, and old ones after `SHARED_MS`."""
        found = []
        for use in uses:
            load, stored_ms = self._stored.get((edge, use.tenant, use.name), (None, 0))
            if use.load != load or now_ms - stored_ms >= SHARED_MS:
                found.append(use)
        return found

    def stored(self, edge: str, uses: Iterable[DeploymentUse], now_ms: int) -> None:
        """Note uses that are in the database."""
        for use in uses:
            load, at_ms = self._stored.get((edge, use.tenant, use.name), (0, 0))
            if use.load and (not load or now_ms - at_ms > FRESH_MS):
                self.changed.set()
            self._stored[edge, use.tenant, use.name] = (use.load, now_ms)

    def forget(self, now_ms: int) -> None:
        """Drop reports that no longer count, so that edges of the past take no memory."""
        self._stored = {name: kept for name, kept in self._stored.items() if now_ms - kept[1] <= FRESH_MS}
