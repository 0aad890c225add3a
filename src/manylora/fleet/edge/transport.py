"""The transport to all replicas of one base: it sends each request to one of them, and acts on adapters to all."""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from manylora.adapter_state import AdapterAction
from manylora.adapters.store.preloads import configured_acts
from manylora.clock import Clock, SystemClock
from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.engine.events import EngineStats, FinishReason
from manylora.errors import ManyloraError, StartupError, Unavailable, UsageUnrecorded
from manylora.fleet.edge.base_cache import BaseCache
from manylora.fleet.edge.edge_queue import EdgeQueue
from manylora.fleet.edge.merged import merged_stats
from manylora.fleet.edge.questions import FleetQuestions
from manylora.fleet.edge.replica import EdgeIdentity, Replica
from manylora.fleet.edge.replicas import ListedReplicas, ReplicaDirectory
from manylora.fleet.edge.requests import FleetRequests
from manylora.fleet.edge.router import ReplicaRouter
from manylora.fleet.wire.framing import LinkBroken
from manylora.fleet.wire.greeting import GreetingRefused
from manylora.fleet.wire.link_messages import (
    BaseTextFiles,
    CountsTaken,
    EngineGone,
    FromHost,
    GetBaseFiles,
    HostBeat,
    KeptCounts,
    TextFile,
)
from manylora.fleet.wire.security import edge_tls, read_secret
from manylora.server.engine_client.messages import (
    AbortRequest,
    AcknowledgeFrame,
    AdapterReply,
    AdapterTextReply,
    CancelAdapterText,
    DropGrammars,
    EngineReady,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    Operation,
    StatsUpdate,
    StepFrame,
    SubmitRequest,
)
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.engine_client.transport import SHUTTING_DOWN, STOP_WAIT_S, FrameReceiver

log = logging.getLogger(__name__)

LOOK_S = 0.02


class FleetTransport:
    """The replicas of one base as one engine. All methods belong to one event loop.

    A request goes to the first replica of the ranking. A refusal and a loss before its first token send it to the next
    one; after its first token a loss ends it with an error that asks for its repetition.
    """

    _receiver: FrameReceiver  # from `start` on

    def __init__(
        self,
        config: Config,
        replicas: ReplicaDirectory | None = None,
        *,
        base: str = "",
        on_progress: Callable[[str], None] = lambda line: None,
        clock: Clock | None = None,
        wake: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Connect to nothing yet. Raises `ConfigInvalid` for settings of the fleet that cannot be used.

        Args:  replicas  None: `fleet.engines`
               base      the short name, in lower case, of the one base that an engine may serve; empty: any base
               wake      as in `EdgeQueue`, for a list that may be empty; None: requests without an engine are refused
        """
        fleet = config.fleet
        self._directory = replicas or ListedReplicas(fleet.engines)
        self._identity = EdgeIdentity(
            name=secrets.token_hex(8),
            secret=read_secret(fleet),
            tls=edge_tls(fleet),
            peer_timeout_s=fleet.peer_timeout_s,
        )
        self._base = base
        self._wanted = config.adapters if replicas is None else None  # replicas of Ray share these settings
        self._on_progress = on_progress
        self._clock = clock or SystemClock()
        self._cache = BaseCache(cache_dir(config) / "fleet-texts")
        self._router = ReplicaRouter(self._identity.name, self._clock)
        self._replicas: dict[str, Replica] = {}
        self._stats: dict[str, EngineStats] = {}
        self._queue = None if wake is None else EdgeQueue(wake, config.engine.max_queue_s, self._clock)
        self._questions = FleetQuestions(self._replicas, self._router, self._queue)
        self._requests = FleetRequests(self._replicas, self._router, self._questions.is_behind, self._queue)
        self._served: ServedModel | None = None
        self._announced: ServedModel | None = None  # by the replica that is asked for the texts of the base
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: asyncio.Future[None] | None = None  # the end of `start`
        self._opening = asyncio.Lock()
        self._keeping = asyncio.Lock()  # answers wait for the files before them, in the order of the messages
        self._is_closing = False

    # ── calls of the client ──────────────────────────────────────────────────────────────────────────────────────

    async def start(self, receiver: FrameReceiver) -> None:
        """Connect to the replicas, and return once one of them serves.

        Raises `StartupError` if a replica refuses this edge, serves another base than the given one, or sends texts
        that cannot be kept, before any other serves.
        """
        self._receiver = receiver
        self._requests.receiver = self._questions.receiver = receiver
        self._first = asyncio.get_running_loop().create_future()
        self._follow()
        self._spawn(self._follow_on())
        if self._queue is not None:
            self._queue.keep("start", lambda waited_ms: True)
        self._on_progress(f"waiting for an engine of {', '.join(self._replicas) or 'the list, which is empty'}")
        try:
            await self._first
        except BaseException:
            await self.close()
            raise

    @property
    def served(self) -> ServedModel:
        if self._served is None:
            raise Unavailable("no engine has answered yet")
        return self._served

    @property
    def is_up(self) -> bool:
        is_ready = self._served is not None and not self._is_closing
        may_wait = self._queue is not None
        return is_ready and (may_wait or any(replica.is_open for replica in self._replicas.values()))

    @property
    def backlogs(self) -> Mapping[str, float]:
        """The prompt tokens that wait on each replica, by its address, as its last beat says."""
        return self._router.backlogs

    def send(self, operation: Operation) -> None:
        match operation:
            case SubmitRequest():
                if self._is_closing:
                    raise Unavailable(SHUTTING_DOWN)
                self._requests.submit(operation)
            case AbortRequest():
                self._requests.abort(operation)
            case GetStats():
                for replica in self._replicas.values():
                    replica.send_surely(operation)
            case ManageAdapter() | GetAdapters() | DropGrammars():
                self._questions.ask_all(operation)
            case GetAdapterText():
                self._questions.ask_one(operation)
            case CancelAdapterText():
                self._questions.cancel(operation)
            case _:
                raise AssertionError(f"not an operation for a fleet: {operation}")

    async def close(self) -> None:
        """End every request with SHUTDOWN, wait for the counts of its last tokens, and leave the replicas."""
        if self._is_closing and not self._replicas:
            return
        self._is_closing = True
        self._requests.abort_all(FinishReason.SHUTDOWN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WAIT_S):
                while len(self._requests):  # noqa: ASYNC110  the ends come from other processes
                    await asyncio.sleep(LOOK_S)
        await self.kill()
        if self._queue is not None:
            await self._queue.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(replica.close() for replica in self._replicas.values()))
        self._replicas.clear()

    async def kill(self) -> None:
        self._is_closing = True
        self._requests.clear()
        self._questions.clear()
        if self._first is not None:
            self._receiver.lose(FinishReason.SHUTDOWN, Unavailable(SHUTTING_DOWN))

    # ── calls of the replicas ────────────────────────────────────────────────────────────────────────────────────

    def joined(self, replica: Replica, ready: EngineReady) -> None:
        self._refuse_other_base(replica, ready.served)
        served = self._served or self._announced
        if served is not None and (ready.served.model_id, ready.served.sha) != (served.model_id, served.sha):
            raise LinkBroken(
                f"it serves {ready.served.model_id} {ready.served.sha[:12]}, and this edge {served.model_id}"
            )
        self._router.join(replica.address)
        replica.is_fresh = True
        if self._served is None:
            self._announced = ready.served
            replica.send_surely(GetBaseFiles())
        log.info("fleet.engine_joined engine=%s", replica.address)

    def take(self, replica: Replica, message: FromHost) -> None:
        if not self._has(replica):
            return  # its connection is being closed
        match message:
            case StepFrame(number):
                if not self._requests.take(replica, message):  # its host keeps the counts and hands them over
                    raise LinkBroken(f"the usage of its frame {number} cannot be written down here")
                replica.send_surely(AcknowledgeFrame(number))
            case HostBeat():
                self._take_beat(replica, message)
            case EngineGone(is_innocent):
                self._lose(replica, is_suspect=not is_innocent)
            case StatsUpdate(stats):
                self._stats[replica.address] = stats
                away = tuple(sorted(each.address for each in self._replicas.values() if not each.host))
                merged = merged_stats(list(self._stats.values()))
                self._receiver.receive(StatsUpdate(merged, message.lost_log_lines, away))
            case AdapterReply():
                self._questions.take_reply(replica, message)
            case AdapterTextReply():
                self._spawn(self._take_text(replica, message))
            case TextFile():
                self._spawn(self._keep_text(message))
            case BaseTextFiles(files):
                self._spawn(self._open(files))
            case KeptCounts():
                self._spawn(self._adopt(replica, message))
            case _:
                pass

    def left(self, replica: Replica, refusal: GreetingRefused | None) -> None:
        if not self._has(replica):
            return
        self._router.leave(replica.address)
        # A host that dies, or its network, is no request's fault; it reports the death of its engine itself.
        self._lose(replica, is_suspect=False)
        if refusal is not None:
            self._end_start(StartupError(f"the engine {replica.address}: {refusal}"))
        if replica.is_leaving:
            self._drop(replica)

    def note_link(self, link: str) -> None:
        self._receiver.note_link(link)

    @property
    def recorded(self) -> Mapping[str, int]:
        return self._receiver.recorded

    # ── the list of replicas ─────────────────────────────────────────────────────────────────────────────────────

    def _follow(self) -> None:
        """Connect to the new addresses, and let go of those that are gone."""
        wanted = self._directory.addresses()
        for address in wanted:
            known = self._replicas.get(address)
            if known is None:
                self._replicas[address] = Replica(address, self, self._identity)
            else:
                known.is_leaving = False
        for address, replica in tuple(self._replicas.items()):
            if address not in wanted:
                replica.is_leaving, replica.is_open = True, False
                self._router.leave(address)
                self._let_go(replica)

    async def _follow_on(self) -> None:
        while True:
            await self._directory.changed()
            self._follow()

    def _let_go(self, replica: Replica) -> None:
        """Leave a replica that the directory does not list, once it has no request of this edge."""
        if replica.is_leaving and not self._requests.num_on(replica):
            self._spawn(replica.close())
            self._drop(replica)

    def _drop(self, replica: Replica) -> None:
        self._replicas.pop(replica.address, None)
        self._stats.pop(replica.address, None)
        self._router.forget(replica.address)
        self._questions.forget(replica)

    def _has(self, replica: Replica) -> bool:
        """Return whether a replica is in the list: a dropped one, whose address may come again, counts no more."""
        return self._replicas.get(replica.address) is replica

    # ── one message ──────────────────────────────────────────────────────────────────────────────────────────────

    def _take_beat(self, replica: Replica, beat: HostBeat) -> None:
        if replica.is_leaving:
            self._let_go(replica)
            return
        replica.is_open = beat.is_open
        self._router.take(replica.address, beat, is_whole=replica.is_fresh)
        replica.is_fresh = False
        if replica.is_open:
            self._questions.catch_up(replica)
            if self._queue is not None:
                self._queue.admit()
        for address, ref in self._router.new_places():
            self._questions.load_ahead(self._replicas[address], ref, AdapterAction.PRELOAD)
        for address, ref in self._router.prefetches():
            self._questions.load_ahead(self._replicas[address], ref, AdapterAction.PREFETCH)

    def _lose(self, replica: Replica, *, is_suspect: bool) -> None:
        """Take the loss of a replica's engine, or of the connection to it."""
        replica.is_open = False
        self._stats.pop(replica.address, None)
        if self._is_closing:
            self._requests.drop(replica)
            return
        self._questions.lose(replica)
        self._requests.lose(replica, is_suspect=is_suspect)

    async def _open(self, files: Mapping[str, bytes]) -> None:
        """Take the text files of the base, with which the edge serves. They may have tens of megabytes."""
        announced = self._announced
        assert announced is not None, "the texts answer a question to a replica that has joined"
        async with self._opening:  # two replicas may be asked, one after the loss of the other
            if self._served is None:
                try:
                    self._served = await asyncio.to_thread(self._cache.open_base, announced, files)
                except StartupError as error:
                    log.error("fleet.texts_unusable error=%s", error.message)
                    self._end_start(error)
                    return
                if self._wanted is not None:
                    self._questions.want(configured_acts(self._wanted, frozenset(self._served.adapter_sources)))
        self._end_start()

    async def _keep_text(self, file: TextFile) -> None:
        async with self._keeping:
            await asyncio.to_thread(self._cache.keep_text, file)

    async def _take_text(self, replica: Replica, reply: AdapterTextReply) -> None:
        """Take an answer, after the file that it names."""
        if reply.words.path:
            async with self._keeping:
                pass
        if self._has(replica):
            self._questions.take_text(replica, self._cache.located(reply))

    def _end_start(self, error: StartupError | None = None) -> None:
        """End `start`, unless it has ended."""
        if self._first is None or self._first.done():
            return
        if error is None:
            self._first.set_result(None)
        else:
            self._first.set_exception(error)

    def _refuse_other_base(self, replica: Replica, served: ServedModel) -> None:
        """Raises `LinkBroken` for an engine of another base than the one that this edge was given."""
        if not self._base or self._base in (served.model_id.lower(), *served.aliases):
            return
        message = f"it serves {served.model_id}, and model.base of this edge is {self._base}"
        self._end_start(StartupError(f"the engine {replica.address}: {message}"))
        raise LinkBroken(message)

    async def _adopt(self, replica: Replica, kept: KeptCounts) -> None:
        try:
            await self._receiver.adopt(kept.counts)
        except (UsageUnrecorded, ManyloraError) as error:
            log.error("fleet.counts_not_adopted error=%s", error.message)
            return
        replica.send_surely(CountsTaken(kept.number))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
