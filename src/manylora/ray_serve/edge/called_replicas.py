"""The replicas of a base behind calls: which of them answer, and the acts that one which was away has missed."""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Protocol

from manylora.adapter_ref import AdapterRef
from manylora.cluster.views import Want
from manylora.errors import Unavailable
from manylora.failure import Failure
from manylora.fleet.edge.merged import NONE_OPEN, merged_stats
from manylora.fleet.edge.questions import FleetQuestions
from manylora.ids import ReplicaId
from manylora.ray_serve.each_replica import Answers
from manylora.server.engine_client.messages import (
    AdapterReply,
    CancelAdapterText,
    DropGrammars,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StatsUpdate,
    decode_frame,
    encode,
)
from manylora.server.engine_client.transport import FrameReceiver

log = logging.getLogger(__name__)

Question = ManageAdapter | GetAdapters | DropGrammars


class AskAll(Protocol):
    """A call of `handle_transport.ReplicaCalls.ask_all`."""

    async def __call__(
        self, operation: bytes, *, among: frozenset[ReplicaId] | None, known_silent: Collection[ReplicaId]
    ) -> Answers | None:
        """Return the answers. None: the carrier has failed, and no replica has been asked."""


class CalledReplica:
    """One replica that Serve runs, as `FleetQuestions` sees it: away from its first missing answer on."""

    def __init__(self, name: ReplicaId, post: Callable[["CalledReplica", Question], None]) -> None:
        self.address: ReplicaId = name
        self.is_open = False
        self._post = post

    @property
    def host(self) -> str:
        return self.address if self.is_open else ""

    def send(self, message: GetAdapterText) -> None:
        """Raise `Unavailable`: texts are asked by calls that Serve's router sends."""
        raise Unavailable(NONE_OPEN)

    def send_surely(self, message: Question | CancelAdapterText) -> None:
        """Ask the replica. A failure takes it for away."""
        assert not isinstance(message, CancelAdapterText), "no text is asked here"
        self._post(self, message)


class CalledReplicas:
    """The replicas that Serve runs, and the acts that each of them has carried out.

    `refresh` looks which of them answer. An act reaches those that do; one that was away, or that is new, gets what it
    has missed with its next answer. All methods belong to one event loop.
    """

    def __init__(
        self,
        ask_all: AskAll,
        spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"],
        receiver: FrameReceiver,
    ) -> None:
        """`spawn` runs a coroutine as a task of the owner."""
        self._ask_all = ask_all
        self._spawn = spawn
        self._receiver = receiver
        self._replicas: dict[str, CalledReplica] = {}
        self._questions = FleetQuestions(self._replicas, _NoRouter())
        self._questions.receiver = receiver
        self._round: asyncio.Task[None] | None = None
        self._posted: dict[int, tuple[Question, set[ReplicaId]]] = {}  # by number; of this turn of the loop

    async def refresh(self) -> None:
        """Ask every replica for its numbers, and deliver their sum; bring those that answer up to date.

        A call joins the round that is under way: an answer of an older round must not undo that of a newer one.
        """
        if self._round is None or self._round.done():
            self._round = self._spawn(self._look())
        await asyncio.shield(self._round)

    async def ask(self, question: Question) -> None:
        """Ask every replica that answers; the receiver gets one answer, which names the others."""
        if not any(replica.is_open for replica in self._replicas.values()):
            await self.refresh()
        try:
            self._questions.ask_all(question)
        except Unavailable as error:
            self._receiver.receive(AdapterReply(question.number, failure=Failure.of(error)))

    async def _look(self) -> None:
        answers = await self._answers(GetStats(), None)
        for gone in {*self._replicas} - {*answers.values, *answers.silent}:
            self._questions.forget(self._replicas.pop(gone))
        for name in answers.silent:
            self._away(self._known(name))
        for name in answers.values:
            replica = self._known(name)
            if not replica.is_open:
                log.info("fleet.replica_there replica=%s", name)
            replica.is_open = True
            self._questions.catch_up(replica)
        updates = [frame for frame in answers.values.values() if isinstance(frame, StatsUpdate)]
        if updates:
            lost = sum(update.lost_log_lines for update in updates)
            merged = merged_stats([update.stats for update in updates])
            self._receiver.receive(StatsUpdate(merged, lost, answers.silent))

    def _known(self, name: ReplicaId) -> CalledReplica:
        if name not in self._replicas:
            self._replicas[name] = CalledReplica(name, self._post)
        return self._replicas[name]

    def _away(self, replica: CalledReplica) -> None:
        if replica.is_open:
            log.warning("fleet.replica_silent replica=%s", replica.address)
        replica.is_open = False
        self._questions.lose(replica)

    def _post(self, replica: CalledReplica, question: Question) -> None:
        """Ask several replicas by one call: those to which this turn of the loop sends the same question."""
        if not self._posted:
            asyncio.get_running_loop().call_soon(self._send_posted)
        self._posted.setdefault(question.number, (question, set()))[1].add(replica.address)

    def _send_posted(self) -> None:
        posted, self._posted = self._posted, {}
        for question, names in posted.values():
            self._spawn(self._put(question, frozenset(names)))

    async def _put(self, question: Question, names: frozenset[ReplicaId]) -> None:
        answers = await self._answers(question, names)
        for name in sorted(names):
            if (replica := self._replicas.get(name)) is None:
                continue
            frame = answers.values.get(name)
            if isinstance(frame, AdapterReply):
                self._questions.take_reply(replica, frame)
            else:
                self._away(replica)

    async def _answers(self, operation: Operation, among: frozenset[ReplicaId] | None) -> Answers:
        """Return the frames of the replicas that answer. None is a refusal, or bytes that are no frame."""
        silent = frozenset(replica.address for replica in self._replicas.values() if not replica.is_open)
        answers = await self._ask_all(encode(operation), among=among, known_silent=silent)
        if answers is None:
            return Answers(silent=tuple(sorted(replica.address for replica in self._replicas.values())))
        return Answers(values={name: _frame(data) for name, data in answers.values.items()}, silent=answers.silent)


def _frame(data: bytes | None) -> Frame | None:
    if data is None:
        return None
    try:
        return decode_frame(data)
    except Exception:  # whatever a decoder raises
        log.exception("fleet.call_broken")
        return None


class _NoRouter:
    """The router of questions where Serve's own has the order of replicas, and learns of adapters by their signals."""

    def order(self, want: Want, but: Collection[str] = ()) -> tuple[str, ...]:
        return ()

    def want_of(self, adapter: AdapterRef | None) -> Want:
        return Want(digest=None, num_bytes=0, tokens=0.0)

    def drop(self, adapter: AdapterRef) -> None:
        """Do nothing."""
