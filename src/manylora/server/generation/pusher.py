"""The way of a push: its bytes to files, its check in the ingest process, its name, and the end of what it replaced."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from manylora.adapter_ref import FOLDER_SOURCES, SourceName
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
    RouteNotBuilt,
)
from manylora.http.callers import Caller
from manylora.ids import TenantId
from manylora.server.access.directory import Directory
from manylora.server.engine_client.client import EngineClient
from manylora.server.generation.routing import ModelRouter
from manylora.server.names.pushed_adapters import Incoming, Push, PushedAdapters
from manylora.tenancy import TenantState

log = logging.getLogger(__name__)

GRACE_S = 10.0
"""Seconds for which requests that came before a push may still begin with the version that it replaced."""
SWEEP_S = 30.0
"""Seconds between two looks for pushes that have expired or whose tenant is closed."""
LOOK_S = 0.02
MOST_AT_ONCE = 8
"""Pushes under way at one time."""
NO_PUSHES = (
    "this server takes no pushes: it has a control plane that other servers may share (control.url), or "
    "adapters.pushed_bytes is 0; upload the adapter to the registry instead"
)


class Pusher:
    """Takes pushes and ends them. It belongs to one event loop; `close` cancels what is under way."""

    def __init__(
        self,
        pushed: PushedAdapters | None,
        config: AdaptersConfig,
        *,
        models: ModelRouter,
        clock: Clock,
        directory: Directory | None,
    ) -> None:
        self._pushed = pushed
        self._config = config
        self._models = models
        self._clock = clock
        self._directory = directory
        self._num_under_way = 0
        self._replaced: dict[tuple[str, str], Push] = {}  # the last one of each name, within `GRACE_S`
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    async def push(
        self, tenant: str, name: str, size: int | None, parts: AsyncIterator[bytes], base: str | None = None
    ) -> AdapterInfo:
        """Take a safetensors file and return the state of the adapter, which the next request for the name gets.

        Args:    size  bytes that the caller announces
                 base  the name of the base that the adapter is for; None: the one that its config declares
        Raises:  `RouteNotBuilt`, `InvalidParameter`, `AdapterReferenceInvalid`, `NameTaken`, `BodyTooLarge`,
                 `StorageLimitExceeded`, `Overloaded`, or the refusal of the ingest
        """
        pushed = self._required()
        if size is None:
            raise InvalidParameter("send the header `Content-Length`: a push announces its size")
        if size > self._config.max_bytes:
            raise BodyTooLarge(f"a push may have at most {self._config.max_bytes} bytes (adapters.max_bytes)")
        await self._require_free(tenant, name)
        if self._num_under_way >= MOST_AT_ONCE:
            raise Overloaded(f"{MOST_AT_ONCE} pushes are under way; repeat the request")
        self._num_under_way += 1
        try:
            with pushed.taken_in(tenant, name, size) as incoming:
                await _write(incoming, size, parts)
                await asyncio.to_thread(pushed.write_config, incoming)
                push = await asyncio.to_thread(pushed.publish, incoming)
            return await self._checked(pushed, push, base)
        except OSError as error:
            raise AdapterStorageUnavailable(f"the push cannot be kept: {error.strerror}") from error
        finally:
            self._num_under_way -= 1

    async def remove(self, tenant: str, name: str) -> None:
        """Take a name from its push and erase it. Raises `AdapterNotFound`."""
        push = self._required().take(tenant, name)
        if push is None:
            raise AdapterNotFound(f"Adapter '{name}' was not found in source '{SourceName.PUSHED}'")
        await self._erase(push)

    def close(self) -> None:
        """End the timers and delete all pushes."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for task in self._tasks:
            task.cancel()
        if self._pushed is not None:
            self._pushed.close()

    def _required(self) -> PushedAdapters:
        if self._pushed is None:
            raise RouteNotBuilt(NO_PUSHES)
        return self._pushed

    async def _require_free(self, tenant: str, name: str) -> None:
        """Raise `AdapterReferenceInvalid` for a text that is no name, `NameTaken` if it means something else."""
        if not is_repository_name(name):
            raise AdapterReferenceInvalid(
                "the name of a pushed adapter has letters, digits, `.`, `_` and `-`, 128 at most",
                parameter="adapter_id",
            )
        try:
            found = await self._models.resolver.resolve(name, tenant=tenant)
        except AdapterNotFound:
            return
        is_there = found is None or (found.source in FOLDER_SOURCES and await self._models.resolver.is_served(found))
        if is_there and (found is None or found.source is not SourceName.PUSHED):
            means = "the base model" if found is None else f"an adapter of the source '{found.source}'"
            raise NameTaken(f"`{name}` means {means} already; push under another name")

    async def _checked(self, pushed: PushedAdapters, push: Push, base: str | None) -> AdapterInfo:
        """Let the ingest process check and pack a push, then give it its name; an adapter that is refused is erased."""
        try:
            with pushed.held(push):
                model = await self._models.base_of(push.ref, Caller(tenant=TenantId(push.tenant)), base)
                rules = await model.texts.of(push.ref, push.tenant)
                if rules.failure is not None:
                    raise rules.failure
                info = await self._loaded(push, model.engine)
        except BaseException:
            self._begin(self._erase(push))
            raise
        replaced = pushed.take_over(push)
        if replaced is not None:
            self._begin(self._retire(pushed, replaced))
        self._plan_sweep()
        log.info("adapter.pushed adapter=%s bytes=%d digest=%s", push.ref, push.num_bytes, info.digest)
        return info

    async def _loaded(self, push: Push, engine: EngineClient) -> AdapterInfo:
        """Bring a checked push to the device; where it finds no room for long, its first request brings it there."""
        info = await engine.manage(AdapterAction.PRELOAD, push.ref)
        end_s = self._clock.monotonic_s() + self._config.load_timeout_s
        while not is_over(AdapterAction.PRELOAD, info) and self._clock.monotonic_s() < end_s:
            await asyncio.sleep(LOOK_S)
            info = await engine.info(push.ref)
        return info

    async def _retire(self, pushed: PushedAdapters, push: Push) -> None:
        """Erase a replaced push after `GRACE_S`, or when the next one of its name is replaced."""
        key = (push.tenant, push.name)
        earlier, self._replaced[key] = self._replaced.get(key), push
        if earlier is not None:
            await self._erase(earlier)
        with pushed.held(push):
            await asyncio.sleep(GRACE_S)
        if self._replaced.get(key) is push:
            del self._replaced[key]
            await self._erase(push)

    async def _erase(self, push: Push) -> None:
        """Delete a push from every tier: its source first, so that the engine need not remember that it is gone."""
        if self._pushed is not None:
            await asyncio.to_thread(self._pushed.erase, push)
        self._models.forget(push.ref)
        for model in self._models.handles:
            model.texts.forget(push.ref)
            try:
                await model.engine.manage(AdapterAction.DELETE, push.ref)
            except AdapterNotFound:
                pass
            except ManyloraError as error:  # the next engine erases the images of pushes at its start
                log.info("adapter.push_not_erased adapter=%s error=%s", push.ref, error.message)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _plan_sweep(self) -> None:
        if self._sweeping is None:
            wait_s = min(SWEEP_S, self._config.pushed_ttl_s)
            self._sweeping = asyncio.get_running_loop().call_later(wait_s, self.sweep)

    def sweep(self) -> None:
        """Erase the pushes that have expired, and those of closed tenants."""
        self._sweeping = None
        pushed = self._required()
        closed = {tenant for tenant in pushed.tenants() if self._is_closed(tenant)}
        for push in [*pushed.expired(), *(push for tenant in closed for push in pushed.all_of(tenant))]:
            if pushed.take(push.tenant, push.name) is push:
                self._begin(self._erase(push))
        if len(pushed):
            self._plan_sweep()

    def _is_closed(self, tenant: str) -> bool:
        facts = None if self._directory is None else self._directory.tenant(TenantId(tenant))
        return facts is not None and facts.state is TenantState.CLOSED


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
