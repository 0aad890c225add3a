"""The requests of an edge to dedicated deployments: their number, which wakes a sleeping one, and their waits."""

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator

from manylora.clock import Clock
from manylora.errors import ControlUnavailable, DeploymentNotFound, Overloaded, Unavailable
from manylora.ids import TenantId
from manylora.server.access.control_client import ControlClient
from manylora.server.access.directory import Directory
from manylora.server.engine_client.transport import SHUTTING_DOWN
from manylora.system.printable import quoted
from manylora.tenancy import DeploymentFacts, DeploymentUse

log = logging.getLogger(__name__)

LOOK_S = 0.05
"""Seconds between two looks of a waiting request at the edge's copy of the control plane's facts."""
REPORT_S = 1.0
STOPPED = "stopped"

Named = tuple[TenantId, str]
"""Tenant and name of a deployment."""


class DeploymentWaits:
    """The deployments as this edge knows them, and its requests to them. It belongs to one event loop."""

    def __init__(
        self,
        directory: Directory,
        client: ControlClient,
        clock: Clock,
        *,
        edge: str,
        wait_s: float,
        max_waiting: int,
    ) -> None:
        """Hold the requests of one edge.

        Args:  wait_s       longest wait of a request for a replica; 0: none
               max_waiting  most requests of a tenant that wait
        """
        self._directory = directory
        self._client = client
        self._clock = clock
        self._edge = edge
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._waiting: Counter[TenantId] = Counter()
        self._loads: Counter[Named] = Counter()
        self._loads_of_urls: Counter[str] = Counter()
        self._under_way = 0  # with those that wake nothing, for the drain
        self._last_ms: dict[Named, int] = {}  # of deployments with requests since the last report
        self._reporting: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._asked = self._told = 0  # words to the control plane that waiting requests have asked for, and have got
        self._empty = asyncio.Event()
        self._empty.set()
        self.is_draining = False
        """True once this edge takes no further request."""

    def find(self, tenant: str, name: str) -> DeploymentFacts | None:
        """Return a deployment; None: there is none of that name."""
        return self._directory.deployment(tenant, name)

    @contextlib.contextmanager
    def counted(self, facts: DeploymentFacts, *, wakes: bool) -> Iterator[None]:
        """Count a request to a deployment, from its entry to its end. Raises `Unavailable` once the edge drains.

        The control plane hears of one that `wakes` alone: no other starts a replica, keeps one or is load.
        """
        if self.is_draining:
            raise Unavailable(SHUTTING_DOWN)
        named = (facts.tenant, facts.name)
        self._under_way += 1
        self._empty.clear()
        if wakes:
            self._loads[named] += 1
        try:
            yield
        finally:
            if wakes:
                self._loads[named] -= 1
                self._last_ms[named] = self._now_ms()
            self._under_way -= 1
            if not self._under_way:
                self._empty.set()

    async def emptied(self) -> None:
        """Return once no request to a deployment is under way."""
        await self._empty.wait()

    @contextlib.contextmanager
    def sent_to(self, url: str) -> Iterator[None]:
        """Count a request at one replica."""
        self._loads_of_urls[url] += 1
        try:
            yield
        finally:
            self._loads_of_urls[url] -= 1

    async def ready_url(
        self, tenant: str, name: str, *, end_s: float, wakes: bool, without: Collection[str] = ()
    ) -> str:
        """Return the URL of the ready replica with the fewest requests of this edge, after a wait if there is none.

        Args:    end_s    monotonic moment at which the wait is over; a moment in the past: no wait
                 wakes    whether the control plane hears of a wait at once
                 without  URLs that have just failed
        Raises:  `DeploymentNotFound`, `Unavailable` with the state of the deployment, `Overloaded`
        """
        if (url := self._url(self._found(tenant, name), without)) is not None:
            return url
        waiting = TenantId(tenant)
        self._require_place(waiting)
        self._waiting[waiting] += 1
        try:
            return await self._awaited_url(tenant, name, end_s=end_s, wakes=wakes, without=without)
        finally:
            self._waiting[waiting] -= 1
            if not self._waiting[waiting]:
                del self._waiting[waiting]

    async def _awaited_url(self, tenant: str, name: str, *, end_s: float, wakes: bool, without: Collection[str]) -> str:
        if wakes:
            await self._tell()
        while True:
            facts = self._found(tenant, name)
            if (url := self._url(facts, without)) is not None:
                return url
            if facts.state == STOPPED or self._clock.monotonic_s() >= end_s:
                told = f": {facts.detail}" if facts.detail else ""
                raise Unavailable(f"deployment {quoted(name)} has no ready replica; its state is {facts.state}{told}")
            await asyncio.sleep(LOOK_S)

    def require_room(self, tenant: str, name: str) -> None:
        """Require that one more request may wait, unless the deployment is ready. Raises `Overloaded`."""
        facts = self.find(tenant, name)
        if facts is None or not facts.urls:
            self._require_place(TenantId(tenant))

    def _require_place(self, tenant: TenantId) -> None:
        if self._waiting[tenant] >= self._max_waiting:
            raise Overloaded(
                f"{self._max_waiting} requests of the tenant wait for deployments without a ready replica already "
                "(placement.max_waiting); repeat the request later"
            )

    def _found(self, tenant: str, name: str) -> DeploymentFacts:
        facts = self.find(tenant, name)
        if facts is None:
            raise DeploymentNotFound(f"deployment {quoted(name)} was not found")
        return facts

    def _url(self, facts: DeploymentFacts, without: Collection[str]) -> str | None:
        """Return the URL of the replica with the fewest requests of this edge; None: none is ready."""
        urls = [url for url in facts.urls if url not in without]
        return min(urls, key=lambda url: self._loads_of_urls[url], default=None)

    def end_of_wait(self, *, wakes: bool) -> float:
        """Return the monotonic moment at which the wait of a request that comes now is over."""
        return self._clock.monotonic_s() + (self._wait_s if wakes else 0.0)

    def start(self) -> None:
        """Begin to report the requests each second."""
        self._reporting = asyncio.create_task(self._report_on())

    async def stop(self) -> None:
        for task in filter(None, (self._reporting, self._telling)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def report(self) -> None:
        """Report every deployment that has requests, or has had some since the last report."""
        now_ms = self._now_ms()
        busy = [named for named, load in self._loads.items() if load]
        named_all = dict.fromkeys([*self._last_ms, *busy])
        uses = [
            DeploymentUse(tenant=tenant, name=name, load=load, last_ms=now_ms if load else self._last_ms[tenant, name])
            for tenant, name in named_all
            if (load := self._loads[tenant, name]) or (tenant, name) in self._last_ms
        ]
        if not uses:
            return
        with contextlib.suppress(ControlUnavailable):  # the next report has the newer numbers
            await self._client.report_deployments(self._edge, uses)
            for use in uses:  # what came meanwhile is the next report's
                if self._last_ms.get((use.tenant, use.name), math.inf) <= use.last_ms:
                    del self._last_ms[use.tenant, use.name]
            for named in [named for named, load in self._loads.items() if not load]:
                del self._loads[named]

    async def _tell(self) -> None:
        """Report the requests that wait, and read the answer: once for all that wait at the same time.

        A control plane that does not answer hears of them with the next report.
        """
        self._asked = own = self._asked + 1
        while self._told < own:
            if self._telling is None or self._telling.done():
                self._telling = asyncio.create_task(self._tell_all())
            await asyncio.shield(self._telling)

    async def _tell_all(self) -> None:
        while self._told < (asked := self._asked):
            await self.report()
            with contextlib.suppress(ControlUnavailable):
                await self._directory.refresh()
            self._told = asked

    async def _report_on(self) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                await self.report()
            except Exception:  # no code awaits this task, so one fault must not end it
                log.exception("deployments.report_failed")

    def _now_ms(self) -> int:
        return int(1000 * self._clock.wall_s())
