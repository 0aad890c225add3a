"""One replica's engine behind calls of edges: streams of items, questions, its signal, and its drain."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.clock import Clock
from manylora.cluster.signals import FIRST_EPOCH, Signal, routing_key
from manylora.cluster.views import Tier
from manylora.engine.events import EngineStats, Finished, FinishReason, TokenEvent
from manylora.engine.request import Request
from manylora.errors import ManyloraError, Unavailable
from manylora.failure import Failure
from manylora.fleet.host.load import ReplicaLoad, has_moved
from manylora.ids import Digest
from manylora.ray_serve.items import ACCEPTED, item_of
from manylora.ray_serve.replica.downtime import Downtime
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.messages import (
    AdapterReply,
    AdapterTextReply,
    DropGrammars,
    EngineReady,
    Frame,
    GetAdapters,
    GetAdapterText,
    GetStats,
    ManageAdapter,
    StatsUpdate,
    SubmitRequest,
    decode_operation,
    encode,
)
from manylora.server.engine_client.streams import SequenceStream
from manylora.usage import Counts

log = logging.getLogger(__name__)

EDGE_SILENCE_S = 30.0
"""Seconds without any call of an edge after which its requests end: it is gone, and no reader takes their tokens."""
_TIERS = {
    AdapterState.ON_DEVICE: Tier.DEVICE,
    AdapterState.IN_HOST: Tier.HOST,
    AdapterState.ON_DISK: Tier.DISK,
}


class ReplicaEngine:
    """The engine of one replica. All methods belong to one event loop.

    Args: coalesce_s  seconds between two items of a request: steps in between travel in one item
    """

    def __init__(self, client: EngineClient, clock: Clock, *, coalesce_s: float) -> None:
        self._client = client
        self._clock = clock
        self._coalesce_s = coalesce_s
        self._heard: dict[str, float] = {}
        self._epoch = FIRST_EPOCH
        self._tiers: dict[Digest, Tier] = {}
        self._listed: EngineStats | None = None  # as of the last list of adapters
        self._numbers = 0
        self._downtime = Downtime(clock)
        self.load = ReplicaLoad(clock)
        self.stats: EngineStats | None = None
        self.is_draining = False

    async def start(self) -> None:
        """Start the engine, and return once it takes requests. Raises `StartupError`."""
        await self._client.start()

    def ready(self) -> bytes:
        """Return the frame `EngineReady` with the facts about the base. Raises `Unavailable` before the start."""
        return encode(EngineReady(self._client.served))

    async def generate(self, edge: str, operation: bytes) -> AsyncGenerator[bytes, None]:
        """Run the request of a `SubmitRequest`; yield `ACCEPTED`, then items, the last of which has its end.

        The steps of `coalesce_s` seconds share an item. A caller that closes the generator aborts the request.
        """
        submit = decode_operation(operation)
        assert isinstance(submit, SubmitRequest), "a streamed call carries a `SubmitRequest`"
        self._note(edge)
        yield ACCEPTED
        try:
            stream = self._client.generate(submit.request)
        except ManyloraError as error:
            yield item_of(submit.index, submit.request.id, [_refused(submit.request, error)])
            return
        self._numbers += 1
        number = self._numbers
        self.load.begin(number, len(submit.request.tokens))
        try:
            while stream.finished is None or stream.is_ready:
                await stream.ready()
                self.load.start(number)
                yield item_of(submit.index, submit.request.id, _taken(stream))
                if stream.finished is None:
                    self._leave_lost(edge, stream)
                    await asyncio.sleep(self._coalesce_s)
        finally:
            self.load.end(number)
            stream.close()

    async def ask(self, edge: str, operation: bytes) -> bytes:
        """Answer a question of an edge with a frame. A refusal is part of the frame."""
        self._note(edge)
        return encode(await self._answer(operation))

    async def observe(self) -> None:
        """Take the engine's numbers and the places of adapters for the signal; call it about once a second."""
        stats = await self._client.stats()
        if stats is None:
            return
        self.stats = stats
        self.load.note(stats)
        if has_moved(self._listed, stats):
            try:
                infos = await self._client.infos()
            except ManyloraError:
                return  # the engine starts again; the next call asks anew
            self._listed = stats
            self._tiers = _tiers_of(infos)

    def signal(self) -> Signal:
        """Return the replica's state for routers, with a new epoch."""
        self._epoch += 1
        store = None if self.stats is None else self.stats.adapters
        return Signal(
            epoch=self._epoch,
            backlog_tokens=self.load.backlog_tokens,
            tokens_per_s=self.load.tokens_per_s,
            in_flight=self.load.in_flight,
            tiers=self._tiers,
            is_draining=self.is_draining,
            bank_bytes=0 if store is None else store.bank_bytes_total,
            adapter_bytes=0 if store is None or not store.on_device else store.bank_bytes_used // store.on_device,
        )

    def scaling_numbers(self) -> dict[str, float]:
        """Return the numbers of `cluster/scaling.py`'s `FleetLoad` for this replica."""
        thrash = 0.0 if self.stats is None else self.stats.adapters.thrash_ratio
        return {
            "backlog_tokens": float(self.load.backlog_tokens),
            "tokens_per_s": self.load.tokens_per_s,
            "thrash": thrash,
            "load_share": self.load.load_share,
        }

    def report(self) -> dict[str, Any]:
        """Return the replica's state as JSON's values: load, speed, and the number of adapters in each tier."""
        tiers = Counter(tier.name.lower() for tier in self._tiers.values())
        return {
            "is_up": self._client.health().is_up,
            "is_draining": self.is_draining,
            "in_flight": self.load.in_flight,
            "tiers": dict(tiers),
            **self.scaling_numbers(),
        }

    def raise_if_dead(self, most_s: float) -> None:
        """Raise `EngineFault` if the engine process has been down for `most_s` seconds: its restarts fail."""
        self._downtime.raise_if_over(most_s, is_up=self._client.health().is_up)

    async def close(self) -> None:
        """End what is left with SHUTDOWN, which callers may repeat elsewhere, and stop the engine."""
        self.is_draining = True
        await self._client.close()

    async def _answer(self, operation: bytes) -> Frame:
        question = decode_operation(operation)
        match question:
            case GetStats():
                stats = await self._client.stats()
                if stats is None:
                    raise Unavailable("the engine has not sent its numbers yet")
                return StatsUpdate(stats, self._client.health().lost_log_lines)
            case GetAdapterText(number, ref, flow, weight):
                reply = await self._client.text(ref, flow, weight)
                return AdapterTextReply(number, reply.words, reply.failure, reply.found_in, reply.waited_ms)
            case ManageAdapter(number) | GetAdapters(number) | DropGrammars(number):
                return await self._adapters(number, question)
            case _:
                raise AssertionError(f"not a question: {question}")

    async def _adapters(self, number: int, question: ManageAdapter | GetAdapters | DropGrammars) -> AdapterReply:
        try:
            if isinstance(question, DropGrammars):
                await self._client.drop_grammars(question.flows)
                return AdapterReply(number)
            if isinstance(question, ManageAdapter):
                return AdapterReply(number, (await self._client.manage(question.action, question.ref),))
            if question.ref is not None:
                return AdapterReply(number, (await self._client.info(question.ref),))
            return AdapterReply(number, await self._client.infos())
        except ManyloraError as error:
            return AdapterReply(number, failure=Failure.of(error))

    def _note(self, edge: str) -> None:
        now_s = self._clock.monotonic_s()
        self._heard = {name: at for name, at in self._heard.items() if now_s - at < EDGE_SILENCE_S}
        self._heard[edge] = now_s

    def _leave_lost(self, edge: str, stream: SequenceStream) -> None:
        """Abort a request whose edge is gone, so that it takes no further steps."""
        heard_s = self._heard.get(edge)
        if heard_s is None or self._clock.monotonic_s() - heard_s >= EDGE_SILENCE_S:
            log.warning("replica.edge_lost edge=%s request=%s", edge, stream.request.id)
            stream.close()
            raise Unavailable(f"edge {edge} is gone")


def _taken(stream: SequenceStream) -> list[TokenEvent | Finished]:
    events: list[TokenEvent | Finished] = []
    while stream.is_ready:
        events.append(stream.take())
    return events


def _refused(request: Request, error: ManyloraError) -> Finished:
    counts = Counts(prompt_tokens=len(request.tokens), cached_tokens=0, completion_tokens=0)
    failed = FinishReason.ENGINE_FAILURE
    return Finished(request_id=request.id, reason=failed, counts=counts, failure=Failure.of(error))


def _tiers_of(infos: tuple[AdapterInfo, ...]) -> dict[Digest, Tier]:
    """Return the nearest tier of each adapter that has one, the most recently used first."""
    recent = sorted(infos, key=lambda info: float("inf") if info.last_use_s is None else info.last_use_s)
    near = [info for info in recent if info.state in _TIERS]
    return {routing_key(f"{info.source}:{_full_id(info)}"): _TIERS[info.state] for info in near}


def _full_id(info: AdapterInfo) -> str:
    return f"{info.tenant}/{info.id}" if info.tenant else info.id
