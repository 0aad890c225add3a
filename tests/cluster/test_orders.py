"""Every order reaches every replica, whatever is lost, and whoever joins or starts anew."""

from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.adapter_state import AdapterAction
from manylora.cluster.orders import FleetOrder, OrderBook
from manylora.ids import ReplicaId
from tests.cluster.fleets import replica

acts = st.tuples(
    st.sampled_from(
        [
            AdapterAction.PRELOAD,
            AdapterAction.PIN,
            AdapterAction.UNPIN,
            AdapterAction.EVICT,
            AdapterAction.DELETE,
        ]
    ),
    st.sampled_from(["one", "two"]),
)
# An act, or the number of a replica and the number of its outstanding orders that arrive; negative: it starts anew.
events = st.lists(acts | st.tuples(st.integers(0, 2), st.integers(-1, 3)), max_size=40)


class Copy:
    """The lasting state of a replica, as the orders make it."""

    def __init__(self) -> None:
        self.done = 0
        self.pinned: set[str] = set()
        self.bytes_of: set[str] = {"one", "two"}  # on its disk from before

    def carry_out(self, order: FleetOrder) -> None:
        self.done = order.number
        match order.action:
            case AdapterAction.PIN:
                self.pinned.add(order.adapter)
            case AdapterAction.UNPIN:
                self.pinned.discard(order.adapter)
            case AdapterAction.DELETE:
                self.pinned.discard(order.adapter)
                self.bytes_of.discard(order.adapter)


@given(events)
@settings(max_examples=80, deadline=None)
def test_every_act_reaches_every_replica(history: list[tuple[AdapterAction, str] | tuple[int, int]]) -> None:
    book, copies, issued = OrderBook(), {replica(number): Copy() for number in range(3)}, list[FleetOrder]()
    for first, second in history:
        if isinstance(first, AdapterAction):
            issued.append(book.issue(first, str(second)))
        elif int(second) < 0:
            copies[replica(first)] = Copy()
            book.confirm(replica(first), 0)
        else:
            _deliver(book, copies, first, int(second))
    for number in range(3):
        _deliver(book, copies, number, len(issued))
    deleted = {order.adapter for order in issued if order.action is AdapterAction.DELETE}
    pins = {
        name
        for name in ("one", "two")
        if [order.action for order in issued if order.adapter == name and order.action in _PINNING][-1:]
        == [AdapterAction.PIN]
    }
    for copy in copies.values():
        assert copy.pinned == pins
        assert copy.bytes_of == {"one", "two"} - deleted
    assert all(book.has_reached(order.number, copies) for order in issued)
    assert len(book.outstanding(replica(9))) <= 2 * len(AdapterAction)


_PINNING = (AdapterAction.PIN, AdapterAction.UNPIN, AdapterAction.DELETE)


def _deliver(book: OrderBook, copies: dict[ReplicaId, Copy], number: int, count: int) -> None:
    copy = copies[replica(number)]
    waiting = book.outstanding(replica(number))
    for order in waiting[:count]:
        copy.carry_out(order)
    is_all = count >= len(waiting)
    book.confirm(replica(number), max(copy.done, book.last if is_all else 0))


def test_a_deletion_is_known_to_routers_until_the_adapter_comes_again() -> None:
    book = OrderBook()
    book.issue(AdapterAction.DELETE, "one")
    assert book.revoked() == {"one"}
    book.issue(AdapterAction.PRELOAD, "one")
    assert book.revoked() == set()
    # A replica that was cut off for both still deletes before it loads.
    assert [order.action for order in book.outstanding(replica(0))] == [AdapterAction.DELETE, AdapterAction.PRELOAD]


def test_an_order_has_not_reached_a_replica_that_is_silent() -> None:
    book = OrderBook()
    order = book.issue(AdapterAction.EVICT, "one")
    book.confirm(replica(0), order.number)
    assert book.has_reached(order.number, [replica(0)])
    assert not book.has_reached(order.number, [replica(0), replica(1)])
    book.forget(replica(0))
    assert not book.has_reached(order.number, [replica(0)])
