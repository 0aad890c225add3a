"""A placer without processes: its replicas are as a test says, and it notes what it was asked to do."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from manylora.control.deployments.placer import Options, StartOrder
from manylora.control.deployments.replicas import Sight
from manylora.errors import InvalidParameter


class ScriptedPlacer:
    """`sights` has the state of each order's process; a started one is silent until a test says otherwise."""

    def __init__(self, name: str = "placer-1", *, each_bytes: int = 100, all_bytes: int = 1_000) -> None:
        self.id = name
        self.sights: dict[str, Sight] = {}
        self.orders: dict[str, StartOrder] = {}
        self.drained: list[str] = []
        self.killed: list[str] = []
        self.refusal: OSError | None = None
        self.hung: set[str] = set()
        """Orders whose looks never end."""
        self.immortal: set[str] = set()
        """Orders whose processes obey nothing."""
        self.planned: list[str] = []
        """Bases that were planned; `unplannable` has those that cannot be."""
        self.unplannable: set[str] = set()
        self.at_look: Callable[[], object] | None = None
        self.at_start: Callable[[], Awaitable[object]] | None = None
        """Awaited in the middle of a start, before its process is there."""
        self._each, self._all = each_bytes, all_bytes

    def needed_bytes(self, options: Options) -> int:
        self.planned.append(options.base)
        if options.base in self.unplannable:
            raise InvalidParameter(f"{options.base}: no such base", parameter="config.baseModel")
        return self._each

    def total_bytes(self) -> int:
        return self._all

    async def start(self, order: StartOrder) -> str:
        if self.refusal is not None:
            raise self.refusal
        if self.at_start is not None:
            await self.at_start()
        self.orders[order.id] = order
        self.sights[order.id] = Sight.SILENT
        return f"http://127.0.0.1:{len(self.orders)}"

    async def sight(self, order_id: str, url: str) -> tuple[Sight, str]:
        if self.at_look is not None:
            self.at_look()
        if order_id in self.hung:
            await asyncio.Event().wait()
        found = self.sights.get(order_id, Sight.GONE)
        return found, "its process ended with signal 9" if found is Sight.GONE else ""

    async def drain(self, order_id: str) -> None:
        self.drained.append(order_id)
        self._end(order_id)

    async def kill(self, order_id: str) -> None:
        self.killed.append(order_id)
        self._end(order_id)

    def _end(self, order_id: str) -> None:
        if order_id not in self.immortal:
            self.sights[order_id] = Sight.GONE

    async def sweep(self, known: Collection[str]) -> int:
        strays = [each for each, sight in self.sights.items() if sight is not Sight.GONE and each not in known]
        for each in strays:
            await self.kill(each)
        return len(strays)

    async def close(self) -> None:
        """It holds nothing."""

    def all_are(self, sight: Sight) -> None:
        """Set the state of every process that runs."""
        running = [each for each, found in self.sights.items() if found is not Sight.GONE]
        self.sights |= dict.fromkeys(running, sight)
