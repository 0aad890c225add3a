"""The list of replicas: where the engines of a base are at the moment."""

import asyncio
from collections.abc import Iterable
from typing import Protocol


class ReplicaDirectory(Protocol):
    """The addresses of the replicas. One reader follows it; all methods belong to its event loop."""

    def addresses(self) -> tuple[str, ...]:
        """Return the addresses of the replicas, `host:port` each."""

    async def changed(self) -> None:
        """Return once the addresses differ from those that `addresses` returned last."""


class ListedReplicas:
    """A list that its owner may replace: `fleet.engines`, or what a scheduler of replicas reports."""

    def __init__(self, addresses: Iterable[str] = ()) -> None:
        self._addresses = tuple(dict.fromkeys(addresses))
        self._changed = asyncio.Event()

    def addresses(self) -> tuple[str, ...]:
        self._changed.clear()
        return self._addresses

    def set(self, addresses: Iterable[str]) -> None:
        """Replace the list. A replica that is no longer in it gets no further request, and ends those that it has."""
        new = tuple(dict.fromkeys(addresses))
        if new != self._addresses:
            self._addresses = new
            self._changed.set()

    async def changed(self) -> None:
        await self._changed.wait()
