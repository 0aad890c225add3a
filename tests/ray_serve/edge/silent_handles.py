"""A handle of Ray Serve without Ray, replicas of which may be silent, and the names that its router knows."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from manylora.ids import ReplicaId


@dataclass
class FakeResult:
    """The result of one replica's call. It never comes from a silent one."""

    name: ReplicaId
    handle: "FakeHandle"

    async def get_async(self) -> Any:
        if self.name in self.handle.broken:
            raise RuntimeError("the actor died")
        if self.name in self.handle.silent:
            await asyncio.Event().wait()
        return self.name, self.handle.values[self.name]

    def cancel(self) -> None:
        self.handle.cancelled.append(self.name)


@dataclass
class FakeHandle:
    """A handle to replicas with a value each.

    failure    raised by the call itself
    is_stuck   the router does not send the calls
    on_call    is called with each question
    """

    values: dict[ReplicaId, Any]
    silent: set[ReplicaId] = field(default_factory=set)
    broken: set[ReplicaId] = field(default_factory=set)
    cancelled: list[ReplicaId] = field(default_factory=list)
    failure: Exception | None = None
    is_stuck: bool = False
    on_call: Callable[[str], None] = field(default=lambda method: None)

    @property
    def _router(self) -> SimpleNamespace:
        known = {_Id(str(name)): None for name in self.values}
        return SimpleNamespace(_asyncio_router=SimpleNamespace(request_router=SimpleNamespace(curr_replicas=known)))

    def broadcast(self, method: str, *args: object) -> "FakeHandle":
        self.on_call(method)
        return self

    async def _fetch_replica_results_async(self) -> list[FakeResult]:
        if self.failure is not None:
            raise self.failure
        if self.is_stuck:
            await asyncio.Event().wait()
        return [FakeResult(name, self) for name in self.values]


@dataclass(frozen=True)
class _Id:
    unique_id: str
