"""The way of a push: its bytes to files, its check, the control plane, its name, and the end of what it replaced."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

from manylora.adapter_ref import SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, is_over
from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import (
    AdapterNotFound,
    AdapterReferenceInvalid,
    AdapterStorageUnavailable,
    BodyTooLarge,
    InvalidParameter,
    ManyloraError,
    NameTaken,
    Overloaded,
    ResourceNotFound,
    RouteNotBuilt,
)
from manylora.http.callers import Caller
from manylora.server.engine_client.client import EngineClient
from manylora.server.generation.routing import ModelRouter
from manylora.server.names.pushed_adapters import Incoming, ref_of
from manylora.server.pushing.pushed_names import PushedNames
from manylora.stored.pushes import PushFacts, PushWish, push_digest

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""Seconds for which requests that came before a push may still begin with the version that it replaced."""
SWEEP_S = 30.0
"""Seconds between two looks for copies whose push has ended: replaced, deleted, expired, or of a closed tenant."""
LOOK_S = 0.02
MOST_AT_ONCE = 8
"""Pushes under way at one time."""
NO_PUSHES = "this server takes no pushes: adapters.pushed_bytes is 0; upload the adapter to the registry instead"


class Pusher:
    """Takes pushes and ends them. It belongs to one event loop; `close` cancels what is under way."""

    def __init__(self, names: PushedNames | None, config: AdaptersConfig, *, models: ModelRouter, clock: Clock) -> None:
        """`names`: None if the server takes no pushes."""
        self._names = names
        self._config = config
        self._models = models
        self._clock = clock
        self._num_under_way = 0
        self._replaced: dict[tuple[str, str], PushFacts] = {}  # the last one of each name, within `GRACE_S`
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        if names is not None:
            names.on_replaced = self._replace
            names.on_adopted = self._plan_sweep

    async def push(
        self, tenant: str, name: str, size: int | None, parts: AsyncIterator[bytes], base: str | None = None
    ) -> AdapterInfo:
        """Take a safetensors file and return the state of the adapter, which the next request for the name gets.

        Every server of the control plane has it from then on.

        Args:    size  bytes that the caller announces
                 base  the name of the base that the adapter is for; None: the one that its config declares
        Raises:  `RouteNotBuilt`, `InvalidParameter`, `AdapterReferenceInvalid`, `NameTaken`, `BodyTooLarge`,
                 `StorageLimitExceeded`, `Overloaded`, `ControlUnavailable`, `StorageUnavailable`, or the refusal of the
                 ingest
        """
        names = self._required()
        if size is None:
            raise InvalidParameter("send the header `Content-Length`: a push announces its size")
        if size > self._config.max_bytes:
            raise BodyTooLarge(f"a push may have at most {self._config.max_bytes} bytes (adapters.max_bytes)")
        await self._require_free(tenant, name)
        if self._num_under_way >= MOST_AT_ONCE:
            raise Overloaded(f"{MOST_AT_ONCE} pushes are under way; repeat the request")
        self._num_under_way += 1
        try:
            with names.copies.incoming() as incoming:
                await _write(incoming, size, parts)
                await asyncio.to_thread(names.copies.write_config, incoming)
                digest = await asyncio.to_thread(push_digest, incoming.weights)
                push = await names.pushes.begin(tenant, PushWish(name=name, num_bytes=size, digest=digest))
                return await self._taken(names, push, incoming, base)
        except OSError as error:
            raise AdapterStorageUnavailable(f"the push cannot be kept: {error.strerror}") from error
        finally:
            self._num_under_way -= 1

    async def remove(self, tenant: str, name: str) -> None:
        """Take a name from its push, at every server, and erase it. Raises `AdapterNotFound`, `ControlUnavailable`."""
        names = self._required()
        held = [push for push in names.held() if (push.tenant, push.name) == (tenant, name)]
        try:
            await names.pushes.delete(tenant, name)
        except ResourceNotFound as error:
            raise AdapterNotFound(f"Adapter '{name}' was not found in source '{SourceName.PUSHED}'") from error
        for push in held:
            names.drop(push)
            await self._erase(push)

    def close(self) -> None:
        """End the timers and delete all copies."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._tasks:
            task.cancel()
        if self._names is not None:
            self._names.close()

    def _required(self) -> PushedNames:
        if self._names is None:
            raise RouteNotBuilt(NO_PUSHES)
        return self._names

    async def _require_free(self, tenant: str, name: str) -> None:
        """Raise `AdapterReferenceInvalid` for a text that is no name, `NameTaken` if it means something else."""
        if not is_repository_name(name):
            raise AdapterReferenceInvalid(
                "the name of a pushed adapter has letters, digits, `.`, `_` and `-`, 128 at most",
                parameter="adapter_id",
            )
        resolver = self._models.resolver
        if resolver.is_base_name(name):
            raise NameTaken(f"`{name}` means the base model already; push under another name")
        if await resolver.is_known(name, tenant):
            raise NameTaken(f"`{name}` is a repository of the tenant or a local adapter; push under another name")

    async def _taken(self, names: PushedNames, push: PushFacts, incoming: Incoming, base: str | None) -> AdapterInfo:
        """Let the ingest process check and pack a push, then give it its name at the control plane.

        One that is refused is erased, and so is one whose name means a later push by then.
        """
        with names.under_way(push):
            try:
                await names.pushes.send(push, incoming.weights)
                await asyncio.to_thread(names.copies.publish, incoming, push)
                info = await self._checked(push, base)
                named = await names.pushes.publish(push)
            except BaseException:
                self._begin(self._drop(names, push))
                raise
            if named == push:
                names.adopt(push)
            else:
                self._replace(push)
        log.info("adapter.pushed adapter=%s bytes=%d digest=%s", ref_of(push), push.num_bytes, info.digest)
        return info

    async def _checked(self, push: PushFacts, base: str | None) -> AdapterInfo:
        """Let the ingest process check and pack a push, and the engine load it. Raises the refusal of the ingest."""
        model = await self._models.base_of(ref_of(push), Caller(tenant=push.tenant), base)
        rules = await model.texts.of(ref_of(push), push.tenant)
        if rules.failure is not None:
            raise rules.failure
        return await self._loaded(push, model.engine)

    async def _loaded(self, push: PushFacts, engine: EngineClient) -> AdapterInfo:
        """Bring a checked push to the device; where it finds no room for long, its first request brings it there."""
        ref = ref_of(push)
        info = await engine.manage(AdapterAction.PRELOAD, ref)
        end_s = self._clock.monotonic_s() + self._config.load_timeout_s
        while not is_over(AdapterAction.PRELOAD, info) and self._clock.monotonic_s() < end_s:
            await asyncio.sleep(LOOK_S)
            info = await engine.info(ref)
        return info

    async def _drop(self, names: PushedNames, push: PushFacts) -> None:
        """Erase a push that got no name. Where the answer to its publication was lost, it may have one."""
        with names.under_way(push):
            with suppress(ManyloraError):  # the control plane deletes it within the hour
                await names.pushes.discard(push)
                if push.id in await names.pushes.live([push.id]):
                    names.adopt(push)
                    return
            await self._erase(push)

    def _replace(self, push: PushFacts) -> None:
        self._begin(self._retire(push))

    async def _retire(self, push: PushFacts) -> None:
        """Erase the copy of a push without a name after `GRACE_S`, or when the next one of its name is replaced."""
        key = (push.tenant, push.name)
        earlier, self._replaced[key] = self._replaced.get(key), push
        if earlier is not None:
            await self._erase(earlier)
        await asyncio.sleep(GRACE_S)
        if self._replaced.get(key) is push:
            del self._replaced[key]
            await self._erase(push)

    async def _erase(self, push: PushFacts) -> None:
        """Delete a push from every tier: its source first, so that the engine need not remember that it is gone."""
        if self._names is not None:
            await asyncio.to_thread(self._names.copies.erase, push)
        ref = ref_of(push)
        self._models.forget(ref)
        for model in self._models.handles:
            model.texts.forget(ref)
            try:
                await model.engine.manage(AdapterAction.DELETE, ref)
            except AdapterNotFound:
                pass
            except ManyloraError as error:  # the next engine erases the images of pushes at its start
                log.info("adapter.push_not_erased adapter=%s error=%s", ref, error.message)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _plan_sweep(self) -> None:
        if self._sweeping is None:
            wait_s = min(SWEEP_S, self._config.pushed_ttl_s)
            self._sweeping = asyncio.get_running_loop().call_later(wait_s, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweeping = None
        self._begin(self.sweep())

    async def sweep(self) -> None:
        """Erase the copies of pushes that have ended; those of an unknown state stay for a later look."""
        names = self._required()
        held = names.held()
        try:
            live = await names.pushes.live(push.id for push in held)
        except ManyloraError as error:
            log.info("adapter.pushes_unknown error=%s", error.message)
        else:
            for push in held:
                if push.id not in live:
                    names.forget(push)
        if names.held():
            self._plan_sweep()


async def _write(incoming: Incoming, size: int, parts: AsyncIterator[bytes]) -> None:
    """Write the body to its file. Raises `InvalidParameter` if it has another size than announced."""
    descriptor = os.open(incoming.weights, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    done = 0
    try:
        async for part in parts:
            done += len(part)
            if done > size:
                break
            await asyncio.to_thread(_write_all, descriptor, part)
    finally:
        os.close(descriptor)
    if done != size:
        raise InvalidParameter(f"the body has not the {size} bytes that `Content-Length` announces")


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
