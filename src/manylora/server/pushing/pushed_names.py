"""The pushes that names mean at this server: asked of the control plane for each request, with their files copied here.

A push is in force at every server once its trainer has the reply: no server answers from its memory which push a name
means. A server copies the files of a push with its first request.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from manylora.adapter_ref import AdapterRef
from manylora.adapters.sources.upload_folders import is_repository_name
from manylora.errors import AdapterStorageUnavailable, ControlUnavailable, ResourceNotFound
from manylora.server.names.pushed_adapters import PushCopies, ref_of
from manylora.server.storage.pushes import ControlPushes
from manylora.stored.pushes import PushFacts

ATTEMPTS = 5
"""Questions for one name whose pushes are replaced while they are copied."""

_Key = tuple[str, str]


class PushedNames:
    """The `PushFinder` of a server. It belongs to one event loop.

    on_replaced  gets each copy that its name no longer means; the names keep no track of it
    on_adopted   is called with each further copy
    """

    def __init__(self, copies: PushCopies, pushes: ControlPushes) -> None:
        self.copies = copies
        self.pushes = pushes
        self.on_replaced: Callable[[PushFacts], None] = lambda push: None
        self.on_adopted: Callable[[], None] = lambda: None
        self._held: dict[_Key, PushFacts] = {}  # the newest copy of each name
        self._under_way: dict[str, PushFacts] = {}  # taken in here: their files are there, and may have no name
        self._copying: dict[str, asyncio.Task[bool]] = {}  # by the id of the push
        self._asking: dict[_Key, asyncio.Task[PushFacts | None]] = {}  # questions that have not begun

    def held(self) -> list[PushFacts]:
        """Return the newest copy of each name."""
        return list(self._held.values())

    async def current(self, tenant: str, name: str) -> AdapterRef | None:
        if not is_repository_name(name):
            return None
        for _ in range(ATTEMPTS):
            push = await self._asked(tenant, name)
            if push is None:
                self._lose(tenant, name)
                return None
            is_here = self._held.get((tenant, name)) == push or push.id in self._under_way
            if is_here or await self._copied(push):
                return ref_of(push)
        raise ControlUnavailable(f"`{name}` is pushed faster than this server copies it; repeat the request")

    async def listed(self, tenant: str) -> list[tuple[str, AdapterRef]]:
        return [(push.name, ref_of(push)) for push in await self.pushes.all_of(tenant)]

    @contextmanager
    def under_way(self, push: PushFacts) -> Iterator[None]:
        """Let no request copy a push whose files are here."""
        self._under_way[push.id] = push
        try:
            yield
        finally:
            del self._under_way[push.id]

    def adopt(self, push: PushFacts) -> None:
        """Take over a copy whose push a name means, unless the name has a later one."""
        key = (push.tenant, push.name)
        earlier = self._held.get(key)
        if earlier == push:
            return
        if earlier is not None and earlier.version > push.version:
            self.on_replaced(push)
            return
        self._held[key] = push
        self.on_adopted()
        if earlier is not None:
            self.on_replaced(earlier)

    def forget(self, push: PushFacts) -> None:
        """Give up the copy of a push that its name no longer means."""
        if self.drop(push):
            self.on_replaced(push)

    def drop(self, push: PushFacts) -> bool:
        """Keep no track of a copy any more; return whether there was any."""
        key = (push.tenant, push.name)
        if self._held.get(key) != push:
            return False
        del self._held[key]
        return True

    def close(self) -> None:
        """Cancel what is under way, and delete all copies."""
        for task in (*self._copying.values(), *self._asking.values()):
            task.cancel()
        self.copies.close()

    def _lose(self, tenant: str, name: str) -> None:
        gone = self._held.pop((tenant, name), None)
        if gone is not None:
            self.on_replaced(gone)

    async def _asked(self, tenant: str, name: str) -> PushFacts | None:
        """Return the control plane's answer to a question that begins after this call; concurrent calls share one."""
        key = (tenant, name)
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._ask(key))
        return await asyncio.shield(self._asking[key])

    async def _ask(self, key: _Key) -> PushFacts | None:
        del self._asking[key]  # later calls need a later question
        return await self.pushes.current(*key)

    async def _copied(self, push: PushFacts) -> bool:
        """Copy a push, once for all its requests; return whether it was still there."""
        task = self._copying.get(push.id)
        if task is None:
            task = self._copying[push.id] = asyncio.create_task(self._copy(push))
            task.add_done_callback(lambda _: self._copying.pop(push.id, None))
        return await asyncio.shield(task)

    async def _copy(self, push: PushFacts) -> bool:
        copies = self.copies
        try:
            with copies.incoming() as incoming:
                await self.pushes.fetch(push, incoming.weights)
                await asyncio.to_thread(copies.write_config, incoming)
                await asyncio.to_thread(copies.publish, incoming, push)
        except ResourceNotFound:
            return False
        except OSError as error:
            raise AdapterStorageUnavailable(f"the push cannot be copied: {error.strerror}") from error
        self.adopt(push)
        return True
