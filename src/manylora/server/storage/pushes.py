"""The calls of an edge for the adapters that trainers push, which its control plane keeps for all of its edges."""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import msgspec

from manylora.errors import ResourceNotFound, RouteNotBuilt, RouteNotFound, StorageUnavailable
from manylora.ids import TenantId
from manylora.server.access.control_client import REFUSALS, HttpControlClient, decode_answer
from manylora.server.storage.control_store import ROOT
from manylora.server.storage.files import PART_BYTES
from manylora.stored.pushes import PushFacts, PushIds, PushList, PushWish, digest_in, push_digest
from manylora.system.disk import as_unavailable

_REFUSALS = {**REFUSALS, RouteNotFound.row.code: RouteNotFound}
OLDER = "the control plane of this server takes no pushes: it is of an older version"


class ControlPushes:
    """The pushed adapters of all tenants.

    Every method raises `ControlUnavailable` if the control plane does not answer, and `StorageUnavailable` if its disk
    fails. A control plane of an older version has no pushes.
    """

    def __init__(self, client: HttpControlClient) -> None:
        self._client = client

    async def current(self, tenant: str, name: str) -> PushFacts | None:
        """Return the push that a name means now; None: the tenant has none."""
        try:
            answer = await self._exchange("GET", f"{_place(tenant)}/named/{quote(name, safe='')}")
        except (ResourceNotFound, RouteNotFound):
            return None
        return decode_answer(answer, PushFacts)

    async def all_of(self, tenant: str) -> tuple[PushFacts, ...]:
        """Return the push that each name of a tenant means."""
        try:
            return decode_answer(await self._exchange("GET", _place(tenant)), PushList).pushes
        except RouteNotFound:
            return ()

    async def live(self, pushes: Iterable[str]) -> frozenset[str]:
        """Return those of the ids whose pushes are what their names mean."""
        asked = msgspec.json.encode(PushIds(ids=tuple(pushes)))
        return frozenset(decode_answer(await self._exchange("POST", f"{ROOT}/pushes/live", asked), PushIds).ids)

    async def begin(self, tenant: str, wish: PushWish) -> PushFacts:
        """Reserve a version. Raises `StorageLimitExceeded`, and `RouteNotBuilt` for an older control plane."""
        try:
            return decode_answer(await self._exchange("POST", _place(tenant), msgspec.json.encode(wish)), PushFacts)
        except RouteNotFound as error:
            raise RouteNotBuilt(OLDER) from error

    async def send(self, push: PushFacts, file: Path) -> None:
        """Send the bytes of a push from a file. Raises `ResourceNotFound` if its time is over."""
        with file.open("rb") as stream:
            start = 0
            while part := stream.read(PART_BYTES):
                await self._exchange("PUT", f"{_place(push.tenant)}/{push.id}/bytes?start={start}", part)
                start += len(part)

    async def publish(self, push: PushFacts) -> PushFacts:
        """Let the name of a push mean it; return the push that the name means now. Raises `ResourceNotFound`."""
        answer = await self._exchange("POST", f"{_place(push.tenant)}/{push.id}/publication")
        return decode_answer(answer, PushFacts)

    async def fetch(self, push: PushFacts, file: Path) -> None:
        """Copy the bytes of a push into a file, and compare them with its id.

        Raises `ResourceNotFound` for one that has gone meanwhile, `StorageUnavailable` for damaged bytes.
        """
        with as_unavailable(file), file.open("wb") as stream:
            for start in range(0, push.num_bytes, PART_BYTES):
                asked = f"{_place(push.tenant)}/{push.id}/bytes?start={start}&stop={start + PART_BYTES}"
                stream.write(await self._exchange("GET", asked))
        if push_digest(file) != digest_in(push.id):
            raise StorageUnavailable(f"the control plane's copy of the push `{push.name}` is damaged: push it again")

    async def delete(self, tenant: str, name: str) -> None:
        """Delete the push that a name means. Raises `ResourceNotFound`."""
        await self._exchange("DELETE", f"{_place(tenant)}/named/{quote(name, safe='')}")

    async def discard(self, push: PushFacts) -> None:
        """Delete a push that was not published; one that is gone or was published changes nothing."""
        await self._exchange("DELETE", f"{_place(push.tenant)}/{push.id}")

    async def _exchange(self, method: str, path: str, content: bytes | None = None) -> bytes:
        return await self._client.exchange(method, path, content, refusals=_REFUSALS)


def _place(tenant: str) -> str:
    return f"{ROOT}/{quote(TenantId(tenant), safe='')}/pushes"
