"""The calls of an edge for what tenants keep: files, responses and batches, which its control plane has.

Every method raises `ControlUnavailable` if the control plane does not answer, and `StorageUnavailable` if its disk
fails. Ids are those of callers: one of another form than the edges mint is not found.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import msgspec

from manylora.errors import ResourceNotFound
from manylora.ids import TenantId
from manylora.server.access.control_client import HttpControlClient, decode_answer
from manylora.stored.batches import (
    BatchChange,
    BatchTurns,
    HeldBatches,
    RenewedBatches,
    StoredBatch,
    StoredBatches,
    TakeWish,
)
from manylora.stored.files import BegunFile, GrownFile, KeptLines, KeptQuestion, Publication, StoredFile

ROOT = "/internal/stored"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultClaim:
    """The claim to a batch with which its edge appends results, and its counts with them.

    lease  the number of the edge's lease
    """

    batch: str
    lease: int
    completed: int
    failed: int


class ControlStore:
    """The part of the control plane that keeps what tenants give, over the network or in this process."""

    def __init__(self, client: HttpControlClient) -> None:
        self._client = client

    # ── responses ────────────────────────────────────────────────────────────────────────────────────────────────

    async def keep_response(self, tenant: TenantId, response: str, data: bytes, *, growth: int | None = None) -> None:
        """Keep a response. With `growth` it runs and may grow by these bytes.

        Raises for one that runs `StorageLimitExceeded` if it cannot fit the quota at its end, and `LimitExceeded` if
        others that run hold the room.
        """
        running = "" if growth is None else f"?running=1&growth={growth}"
        place = _place(tenant, "responses", response) + running
        await self._client.exchange("PUT", place, data)

    async def replace_response(
        self, tenant: TenantId, response: str, data: bytes, before: str, *, is_running: bool = False
    ) -> None:
        """Replace a response with the digest `before`; its time begins anew.

        Raises `ResourceNotFound`, and `NameTaken` for another digest.
        """
        place = f"{_place(tenant, 'responses', response)}?before={before}&running={int(is_running)}"
        await self._client.exchange("PUT", place, data)

    async def response(self, tenant: TenantId, response: str) -> bytes:
        """Return a response. Raises `ResourceNotFound`."""
        return await self._client.exchange("GET", _place(tenant, "responses", response))

    async def delete_response(self, tenant: TenantId, response: str) -> None:
        """Delete a response. Raises `ResourceNotFound`."""
        await self._client.exchange("DELETE", _place(tenant, "responses", response))

    # ── conversations ────────────────────────────────────────────────────────────────────────────────────────────

    async def keep_conversation(self, tenant: TenantId, conversation: str, data: bytes, before: str) -> None:
        """Replace a conversation with the digest `before`, or make one where that is empty.

        Raises `ResourceNotFound`, `StorageLimitExceeded`, and `NameTaken` if it has another digest.
        """
        await self._client.exchange("PUT", f"{_place(tenant, 'conversations', conversation)}?before={before}", data)

    async def conversation(self, tenant: TenantId, conversation: str) -> bytes:
        """Return a conversation. Raises `ResourceNotFound`."""
        return await self._client.exchange("GET", _place(tenant, "conversations", conversation))

    async def delete_conversation(self, tenant: TenantId, conversation: str) -> None:
        """Delete a conversation. Raises `ResourceNotFound`."""
        await self._client.exchange("DELETE", _place(tenant, "conversations", conversation))

    # ── files ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def files(self, tenant: TenantId) -> list[StoredFile]:
        """Return the visible files of a tenant, the oldest first."""
        return decode_answer(await self._client.exchange("GET", _place(tenant, "files")), list[StoredFile])

    async def file(self, tenant: TenantId, file_id: str) -> StoredFile:
        """Return a file. Raises `ResourceNotFound`."""
        return decode_answer(await self._client.exchange("GET", _place(tenant, "files", file_id)), StoredFile)

    async def read(self, tenant: TenantId, file_id: str, start: int, stop: int) -> bytes:
        """Return bytes of a file, also of one that grows; empty behind its end. Raises `ResourceNotFound`."""
        asked = f"{_place(tenant, 'files', file_id)}/bytes?start={start}&stop={stop}"
        return await self._client.exchange("GET", asked)

    async def begin_file(self, tenant: TenantId, earlier_id: str = "") -> BegunFile:
        """Begin an upload, or a file that an earlier version kept. Raises `StorageLimitExceeded`."""
        asked = f"?earlier_id={quote(earlier_id, safe='')}" if earlier_id else ""
        return decode_answer(await self._client.exchange("POST", _place(tenant, "files") + asked), BegunFile)

    async def append(
        self, tenant: TenantId, file_id: str, start: int, data: bytes, claim: ResultClaim | None = None
    ) -> GrownFile:
        """Append to a growing file of `start` bytes; the bytes are on the disk at the return. It may be repeated.

        Raises `BodyTooLarge`, `StorageLimitExceeded`, `ResourceNotFound`, and `NameTaken` without the batch's lease.
        """
        asked: dict[str, str | int] = {"start": start}
        if claim is not None:
            asked |= {
                "batch": claim.batch,
                "lease": claim.lease,
                "completed": claim.completed,
                "failed": claim.failed,
            }
        path = f"{_place(tenant, 'files', file_id)}/bytes?{urlencode(asked)}"
        return decode_answer(await self._client.exchange("POST", path, data, parameter="file"), GrownFile)

    async def publish(self, tenant: TenantId, file_id: str, order: Publication) -> StoredFile | None:
        """Make a growing file visible; None for empty results. It may be repeated. Raises `NameTaken`."""
        path = f"{_place(tenant, 'files', file_id)}/publication"
        answer: StoredFile | None = decode_answer(
            await self._client.exchange("POST", path, msgspec.json.encode(order)),
            StoredFile | None,  # type: ignore[arg-type]  # a union is no class
        )
        return answer

    async def delete_file(self, tenant: TenantId, file_id: str, *, is_upload: bool = False) -> None:
        """Delete a file, or an upload that has not ended. Raises `ResourceNotFound`, `InvalidParameter`."""
        asked = "?is_upload=true" if is_upload else ""
        await self._client.exchange("DELETE", _place(tenant, "files", file_id) + asked, parameter="file_id")

    # ── batches ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def batches(self, tenant: TenantId) -> tuple[StoredBatch, ...]:
        """Return the batches of a tenant, the oldest first."""
        return decode_answer(await self._client.exchange("GET", _place(tenant, "batches")), StoredBatches).batches

    async def batch(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Return a batch. Raises `ResourceNotFound`."""
        return decode_answer(await self._client.exchange("GET", _place(tenant, "batches", batch_id)), StoredBatch)

    async def create_batch(self, batch: StoredBatch, *, is_earlier: bool = False) -> StoredBatch:
        """Store a new batch, or one as an earlier version kept it.

        Raises `ResourceNotFound`, `InvalidParameter`, `StorageLimitExceeded`.
        """
        content, asked = msgspec.json.encode(batch), "?is_earlier=true" if is_earlier else ""
        answer = await self._client.exchange("POST", f"{ROOT}/batches{asked}", content, parameter="input_file_id")
        return decode_answer(answer, StoredBatch)

    async def cancel_batch(self, tenant: TenantId, batch_id: str) -> StoredBatch:
        """Let no further line begin. Raises `ResourceNotFound`, `InvalidParameter`."""
        path = f"{_place(tenant, 'batches', batch_id)}/cancellation"
        return decode_answer(await self._client.exchange("POST", path, parameter="batch_id"), StoredBatch)

    async def take_batches(self, wish: TakeWish) -> BatchTurns:
        """Take batches that no edge runs."""
        answer = await self._client.exchange("POST", f"{ROOT}/batches/turns", msgspec.json.encode(wish))
        return decode_answer(answer, BatchTurns)

    async def renew_batches(self, leases: Iterable[tuple[str, int]]) -> RenewedBatches:
        """Prolong the leases of batches."""
        held = msgspec.json.encode(HeldBatches(leases=tuple(leases)))
        return decode_answer(await self._client.exchange("POST", f"{ROOT}/batches/leases", held), RenewedBatches)

    async def change_batch(self, change: BatchChange) -> StoredBatch:
        """Bring a batch into a state; return it as it is now. Raises `NameTaken` without its lease."""
        content = msgspec.json.encode(change)
        return decode_answer(await self._client.exchange("POST", f"{ROOT}/batches/states", content), StoredBatch)

    async def kept_lines(self, question: KeptQuestion) -> set[str]:
        """Return the ids of HTTP requests, among those of lines, that have a result."""
        answer = await self._client.exchange("POST", f"{ROOT}/batches/kept", msgspec.json.encode(question))
        return set(decode_answer(answer, KeptLines).requests)


def _place(tenant: TenantId, kind: str, object_id: str | None = None) -> str:
    """Return the path of an object, or of all of a kind. Raises `ResourceNotFound` for an id of another form."""
    root = f"{ROOT}/{quote(tenant, safe='')}/{kind}"
    if object_id is None:
        return root
    if _ID.fullmatch(object_id) is None:
        raise ResourceNotFound("no such object")
    return f"{root}/{object_id}"
