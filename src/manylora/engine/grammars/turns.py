"""Turns: the flows that wait for something, one after the other, whatever the number of things that each waits for."""

from collections.abc import Collection, Iterable
from typing import Generic, TypeVar

from manylora.ids import Flow

Key = TypeVar("Key")


class Turns(Generic[Key]):
    """The keys that wait, by flow. A flow gives its keys in the order of their arrival."""

    def __init__(self) -> None:
        self._keys: dict[Flow, dict[Key, None]] = {}  # the flow whose turn is next comes first

    def __len__(self) -> int:
        """Return the number of keys that wait, each counted once."""
        return len({key for keys in self._keys.values() for key in keys})

    @property
    def flows(self) -> Iterable[Flow]:
        """Return the flows that wait, the one whose turn is next first."""
        return self._keys.keys()

    def add(self, flow: Flow, key: Key) -> None:
        """Let a key wait. One that a flow has already stays where it is."""
        self._keys.setdefault(flow, {}).setdefault(key)

    def remove(self, flow: Flow, key: Key) -> None:
        """Take a key out, if it waits."""
        if (keys := self._keys.get(flow)) is not None:
            keys.pop(key, None)
            if not keys:
                del self._keys[flow]

    def take(self, busy: Collection[Flow]) -> tuple[Flow, Key] | None:
        """Take the first key of the first flow that is not busy, and put that flow last; None: there is none."""
        flow = next((each for each in self._keys if each not in busy), None)
        if flow is None:
            return None
        keys = self._keys.pop(flow)
        key = next(iter(keys))
        del keys[key]
        if keys:
            self._keys[flow] = keys
        return flow, key
