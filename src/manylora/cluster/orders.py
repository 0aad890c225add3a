"""Orders to all replicas: preloads, pins, evictions and deletions, which each replica gets until it confirms them."""

from collections.abc import Iterable
from dataclasses import dataclass

from manylora.adapter_state import AdapterAction
from manylora.ids import ReplicaId

_UNDOES = {
    AdapterAction.UNPIN: {AdapterAction.PIN},
    AdapterAction.PIN: {AdapterAction.UNPIN},
    AdapterAction.EVICT: {AdapterAction.PRELOAD},
    AdapterAction.DELETE: set(AdapterAction),
}


@dataclass(frozen=True, slots=True)
class FleetOrder:
    """One act on one adapter, numbered in the order of its issue. Its repetition has no further effect.

    adapter  its name, or the digest of a version that is revoked
    """

    number: int
    adapter: str
    action: AdapterAction


class OrderBook:
    """The acts that every replica must carry out, those that join later included.

    A replica confirms the last number that it has carried out with each heartbeat, and is sent what lies after it. A
    replica that starts anew confirms 0 and gets the whole book. An act that a later one undoes or repeats leaves the
    book. A deletion stays even where the adapter comes again: a replica that was cut off may hold the old bytes.
    """

    def __init__(self) -> None:
        self._orders: dict[str, list[FleetOrder]] = {}
        self.last = 0  # number of the newest order
        self._confirmed: dict[ReplicaId, int] = {}

    def issue(self, action: AdapterAction, adapter: str) -> FleetOrder:
        """Write an act into the book, and return it with its number."""
        self.last += 1
        order = FleetOrder(self.last, adapter, action)
        undone = {action} | _UNDOES.get(action, set())
        kept = [old for old in self._orders.get(adapter, []) if old.action not in undone]
        self._orders[adapter] = [*kept, order]
        return order

    def outstanding(self, replica: ReplicaId) -> list[FleetOrder]:
        """Return the orders that a replica has not confirmed, the oldest first."""
        done = self._confirmed.get(replica, 0)
        found = [order for orders in self._orders.values() for order in orders if order.number > done]
        return sorted(found, key=lambda order: order.number)

    def confirm(self, replica: ReplicaId, number: int) -> None:
        """Take over the last number that a replica has carried out; a lower one than before says that it began anew."""
        self._confirmed[replica] = min(number, self.last)

    def forget(self, replica: ReplicaId) -> None:
        """Drop a replica that left the fleet: nothing waits for it."""
        self._confirmed.pop(replica, None)

    def has_reached(self, number: int, replicas: Iterable[ReplicaId]) -> bool:
        """Return whether all these replicas have carried out the order of this number."""
        return all(self._confirmed.get(replica, 0) >= number for replica in replicas)

    def revoked(self) -> set[str]:
        """Return the adapters whose last act is a deletion: no router sends a request for one."""
        return {name for name, orders in self._orders.items() if orders[-1].action is AdapterAction.DELETE}
