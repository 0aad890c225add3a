"""Questions and acts on adapters: an act reaches all replicas, those that are away included, and has one answer."""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import LASTING_ACTIONS, NO_WORDS, AdapterAction
from manylora.cluster.orders import FleetOrder, OrderBook
from manylora.cluster.views import Want
from manylora.errors import AdapterNotFound, ManyloraError, Unavailable
from manylora.failure import Failure
from manylora.fleet.edge.edge_queue import EdgeQueue
from manylora.fleet.edge.merged import NONE_OPEN, merged_answer, none_open
from manylora.ids import Flow, ReplicaId
from manylora.server.engine_client.messages import (
    AdapterReply,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    GetAdapters,
    GetAdapterText,
    ManageAdapter,
)
from manylora.server.engine_client.transport import FrameReceiver

log = logging.getLogger(__name__)

ENDING_ACTIONS = (AdapterAction.PIN, AdapterAction.PRELOAD)
REMOVALS = (AdapterAction.EVICT, AdapterAction.DELETE)


class AskedReplica(Protocol):
    """A replica as questions see it. `replica.Replica` is one with a connection, another edge's own may have calls.

    host     the name of its present start; empty: it is away
    is_open  it takes requests
    """

    @property
    def address(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def is_open(self) -> bool: ...

    def send(self, message: GetAdapterText) -> None:
        """Send at once. Raises `Unavailable`, `Overloaded`."""

    def send_surely(self, message: ManageAdapter | GetAdapters | DropGrammars | CancelAdapterText) -> None:
        """Send a message that is small and must not be refused; while the replica is away it means nothing."""


class QuestionRouter(Protocol):
    """The order of the replicas for a question, as `router.ReplicaRouter` has it."""

    def order(self, want: Want, but: Collection[str] = ()) -> Iterable[str]:
        """Return the addresses of the open replicas, the first one in front, without those of `but`."""

    def want_of(self, adapter: AdapterRef | None) -> Want:
        """Return the needs of a question about an adapter."""

    def drop(self, adapter: AdapterRef) -> None:
        """Forget an adapter that is evicted or deleted on every replica."""


@dataclass(slots=True)
class _Broadcast:
    """A question to several replicas.

    waiting  the addresses without an answer yet
    silent   the addresses of the replicas that were away, or that left before they answered
    replies  each by its address
    """

    operation: ManageAdapter | GetAdapters | DropGrammars
    waiting: set[str]
    silent: set[str]
    replies: list[tuple[str, AdapterReply]] = field(default_factory=list)


@dataclass(slots=True)
class _AskedText:
    """address: of the replica that is asked; empty: none is. waited_ms: milliseconds of its wait for an engine."""

    operation: GetAdapterText
    address: str
    tried: set[str] = field(default_factory=set)
    waited_ms: float = 0.0


class FleetQuestions:
    """The questions under way, and the book of acts."""

    receiver: FrameReceiver

    def __init__(
        self, replicas: Mapping[str, AskedReplica], router: QuestionRouter, queue: EdgeQueue | None = None
    ) -> None:
        """`replicas` by address, which the owner keeps up. `queue`: as in `FleetRequests`."""
        self._queue = queue
        self._replicas = replicas
        self._router = router
        self._asked: dict[int, _Broadcast] = {}
        self._texts: dict[int, _AskedText] = {}
        self._book = OrderBook()
        self._refs: dict[str, AdapterRef] = {}
        self._orders: dict[tuple[str, int], FleetOrder] = {}  # under way, by address and number of the question
        self._done: defaultdict[str, set[int]] = defaultdict(set)  # numbers of orders, by address
        self._refused: defaultdict[str, set[int]] = defaultdict(set)  # the same, until the next connection
        # Looks at a deleted name under way, by address and number of the question: the replica that waits, its order.
        self._looks: dict[tuple[str, int], tuple[AskedReplica, FleetOrder]] = {}
        self._behind: defaultdict[str, set[str]] = defaultdict(set)  # deleted names to look at, by address
        self._numbers = 0
        self._closed: list[Flow] = []  # the flows of closed tenants, whose grammars each replica drops
        self._num_told: dict[str, int] = {}  # by address, the closed flows that a replica was told, the first ones

    def ask_all(self, operation: ManageAdapter | GetAdapters | DropGrammars) -> None:
        """Ask all replicas that are there. Raises `Unavailable` without any, and keeps the act for none then.

        Closed flows are kept: a replica that is away gets them once it is there.
        """
        open_replicas = [replica for replica in self._replicas.values() if replica.host]
        if isinstance(operation, DropGrammars):
            self._note_closed(operation.flows, told=open_replicas)
        if not open_replicas:
            raise Unavailable(none_open(sorted(self._replicas)))
        if isinstance(operation, ManageAdapter) and operation.action in LASTING_ACTIONS:
            self._refs[str(operation.ref)] = operation.ref
            order = self._book.issue(operation.action, str(operation.ref))
            for replica in open_replicas:
                self._orders[replica.address, operation.number] = order
        waiting = {replica.address for replica in open_replicas}
        self._asked[operation.number] = _Broadcast(operation, waiting, {*self._replicas} - waiting)
        for replica in open_replicas:
            replica.send_surely(operation)

    def want(self, acts: Iterable[tuple[AdapterAction, AdapterRef]]) -> None:
        """Have every engine carry out the acts of the settings: those that are there, and each that joins later."""
        for action, ref in acts:
            self._refs[str(ref)] = ref
            self._book.issue(action, str(ref))

    def ask_one(self, operation: GetAdapterText) -> None:
        """Ask the replica that will probably run the request. Raises `Unavailable` without any, and without a queue."""
        asked = _AskedText(operation, "")
        try:
            self._send_text(asked)
        except Unavailable:
            if not self._wait(asked):
                raise
        self._texts[operation.number] = asked

    def cancel(self, operation: CancelAdapterText) -> None:
        asked = self._texts.pop(operation.number, None)
        if self._queue is not None:
            self._queue.leave(_key(operation.number))
        if asked is not None and asked.address in self._replicas:
            self._replicas[asked.address].send_surely(operation)

    def take_reply(self, replica: AskedReplica, reply: AdapterReply) -> None:
        order = self._orders.pop((replica.address, reply.number), None)
        if order is not None:
            self._confirm(replica, order, reply)
        look = self._looks.pop((replica.address, reply.number), None)
        if look is not None:
            self._catch_up_with_deletion(*look, reply)
        asked = self._asked.get(reply.number)
        if asked is None or replica.address not in asked.waiting:
            return
        asked.waiting.discard(replica.address)
        asked.replies.append((replica.address, reply))
        self._answer(reply.number, asked)

    def take_text(self, replica: AskedReplica, reply: AdapterTextReply) -> None:
        asked = self._texts.get(reply.number)
        if asked is None or asked.address != replica.address:
            return
        if reply.failure is not None and reply.failure.kind is Unavailable and self._ask_next(asked):
            return
        del self._texts[reply.number]
        self.receiver.receive(msgspec.structs.replace(reply, waited_ms=reply.waited_ms + asked.waited_ms))

    def lose(self, replica: AskedReplica) -> None:
        """Answer the questions that waited for a replica alone, and ask another one for texts."""
        for key in [key for key in self._orders if key[0] == replica.address]:
            del self._orders[key]
        for key in [key for key, look in self._looks.items() if key[0] == replica.address or look[0] is replica]:
            del self._looks[key]
        self._refused.pop(replica.address, None)
        self._num_told.pop(replica.address, None)
        # Deletions and evictions outlast the engine, on its disk; pins and preloads end with it.
        orders = self._book.outstanding(ReplicaId(replica.address))
        self._done[replica.address] -= {order.number for order in orders if order.action in ENDING_ACTIONS}
        for number, asked in tuple(self._asked.items()):
            if replica.address in asked.waiting:
                asked.waiting.discard(replica.address)
                asked.silent.add(replica.address)
                self._answer(number, asked)
        for number, text in tuple(self._texts.items()):
            if text.address == replica.address and not self._ask_next(text):
                del self._texts[number]
                self.receiver.receive(AdapterTextReply(number, NO_WORDS, Failure.of(Unavailable(NONE_OPEN))))

    def forget(self, replica: AskedReplica) -> None:
        """Drop a replica that has left the list: its questions end, and an address that comes again begins anew."""
        self.lose(replica)
        self._done.pop(replica.address, None)
        self._behind.pop(replica.address, None)

    def catch_up(self, replica: AskedReplica) -> None:
        """Send a replica that is there again the acts that it has missed, and the flows closed meanwhile."""
        if untold := self._closed[self._num_told.get(replica.address, 0) :]:
            self._num_told[replica.address] = len(self._closed)
            self._numbers -= 1
            replica.send_surely(DropGrammars(self._numbers, tuple(untold)))
        under_way = {order.number for (address, _), order in self._orders.items() if address == replica.address}
        past = under_way | self._done[replica.address] | self._refused[replica.address]
        looked_at = {order.adapter for waiting, order in self._looks.values() if waiting is replica}
        for order in self._book.outstanding(ReplicaId(replica.address)):
            if order.number in past or order.adapter in looked_at:  # later acts follow the deletion
                continue
            peer = self._peer_without(order) if order.action is AdapterAction.DELETE else None
            if peer is None:
                self._order(replica, order, order.action)
            else:
                looked_at.add(order.adapter)
                self._behind[replica.address].add(order.adapter)
                self._numbers -= 1
                self._looks[peer.address, self._numbers] = replica, order
                peer.send_surely(GetAdapters(self._numbers, self._refs[order.adapter]))

    def is_behind(self, replica: AskedReplica, ref: AdapterRef | None) -> bool:
        """Return whether a replica may have an adapter that was deleted while it was away."""
        behind = self._behind.get(replica.address)
        if not behind or ref is None:
            return False
        return any(str(each) in behind for each in (*ref.members, ref))

    def load_ahead(self, replica: AskedReplica, ref: AdapterRef, action: AdapterAction) -> None:
        """Let a replica load an adapter that requests may ask it for: PRELOAD or PREFETCH. Its answer is of no use."""
        self._numbers -= 1
        replica.send_surely(ManageAdapter(self._numbers, action, ref))

    def clear(self) -> None:
        self._asked.clear()
        self._texts.clear()

    def _note_closed(self, flows: Sequence[Flow], *, told: Sequence[AskedReplica]) -> None:
        before = len(self._closed)
        self._closed += flows
        for replica in told:
            if self._num_told.get(replica.address, 0) == before:
                self._num_told[replica.address] = len(self._closed)

    def _order(self, replica: AskedReplica, order: FleetOrder, action: AdapterAction) -> None:
        self._numbers -= 1  # the client's own numbers are positive
        self._orders[replica.address, self._numbers] = order
        self._behind[replica.address].discard(order.adapter)
        replica.send_surely(ManageAdapter(self._numbers, action, self._refs[order.adapter]))

    def _peer_without(self, order: FleetOrder) -> AskedReplica | None:
        """Return a replica that has carried out a deletion, and thus knows a later version under the name."""
        done = (each for each in self._replicas.values() if each.host and order.number in self._done[each.address])
        return next(done, None)

    def _catch_up_with_deletion(self, replica: AskedReplica, order: FleetOrder, seen: AdapterReply) -> None:
        """Delete on a replica that was away, unless the name has a later version.

        A deletion would take that one. An eviction takes the bytes of all versions, and requests fetch the later one.
        """
        if seen.failure is not None and issubclass(seen.failure.kind, Unavailable):
            return  # the next beat asks again
        lives = seen.failure is None and not any(info.is_deleted for info in seen.infos)
        self._order(replica, order, AdapterAction.EVICT if lives else AdapterAction.DELETE)

    def _confirm(self, replica: AskedReplica, order: FleetOrder, reply: AdapterReply) -> None:
        """Note that a replica has carried out an act, or that it does not have the adapter."""
        if reply.failure is not None and issubclass(reply.failure.kind, Unavailable):
            return
        if reply.failure is not None and not issubclass(reply.failure.kind, AdapterNotFound):
            log.warning("fleet.act_refused engine=%s error=%s", replica.address, reply.failure.message)
            if order.action is AdapterAction.DELETE:  # it must not be lost; the next connection repeats it
                self._refused[replica.address].add(order.number)
                return
        self._done[replica.address].add(order.number)

    def _answer(self, number: int, asked: _Broadcast) -> None:
        if asked.waiting:
            return
        del self._asked[number]
        operation = asked.operation
        answer = merged_answer(operation, asked.replies, sorted(asked.silent))
        if isinstance(operation, ManageAdapter) and answer.failure is None and operation.action in REMOVALS:
            self._router.drop(operation.ref)
        self.receiver.receive(answer)

    def _ask_next(self, asked: _AskedText) -> bool:
        asked.tried.add(asked.address)
        asked.address = ""
        try:
            self._send_text(asked)
        except ManyloraError:
            return self._wait(asked)
        return True

    def _wait(self, asked: _AskedText) -> bool:
        """Let a question wait for an engine, up to its cancellation; return whether it does."""
        if self._queue is None or any(replica.is_open for replica in self._replicas.values()):
            return False
        self._queue.keep(_key(asked.operation.number), lambda waited_ms: self._ask_again(asked, waited_ms))
        return True

    def _ask_again(self, asked: _AskedText, waited_ms: float) -> bool:
        asked.tried.clear()
        try:
            self._send_text(asked)
        except ManyloraError:
            return False
        asked.waited_ms += waited_ms
        return True

    def _send_text(self, asked: _AskedText) -> None:
        refusal: ManyloraError = Unavailable(NONE_OPEN)
        for address in self._router.order(self._router.want_of(asked.operation.ref), asked.tried):
            replica = self._replicas[address]
            if not replica.is_open:
                continue
            try:
                replica.send(asked.operation)
            except ManyloraError as error:
                refusal = error
            else:
                asked.address = address
                return
        raise refusal


def _key(number: int) -> tuple[str, int]:
    return ("text", number)
