"""The client of the control plane's internal routes: snapshots of facts, usage records, and leases of credit."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from manylora.errors import ControlUnavailable
from manylora.ids import TenantId
from manylora.tenancy import AdapterAct, AdapterActs, KeyUsage, Lease, LeaseWish, Shipment, Snapshot
from manylora.usage import UsageRecord

TIMEOUT_S = 5.0
IN_PROCESS_URL = "http://control.invalid"
"""The URL in requests to a control plane of this process. No name is resolved for it."""

Answer = TypeVar("Answer")


class ControlClient(Protocol):
    """The calls of an edge to its control plane. Every method raises `ControlUnavailable` if that does not answer."""

    async def snapshot(self, since: int, epoch: str) -> Snapshot:
        """Return the changes after revision `since` of an epoch; -1 asks for all facts."""

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        """Send records to the ledger, and return once the ledger has them.

        Records that the ledger already has change nothing.
        """

    async def report_uses(self, last: Sequence[tuple[str, int]]) -> None:
        """Report the last use of keys at this edge: (key id, milliseconds since 1970)."""

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        """Report the acts of operators on this edge's adapters, for the audit table."""

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        """Lease up to `nanousd` more of a tenant's credit to this edge; 0 renews the lease, or asks for its state.

        With a key, the lease is a part of the key's budget for the month.
        """

    async def give_back(self, edge: str) -> None:
        """End the leases of an edge that has shipped all its records."""

    async def close(self) -> None: ...


class HttpControlClient:
    """The control plane's `/internal` routes, over the network or, given its ASGI application, in this process."""

    base = ""
    """The name of the served base model, once it is known; the control plane lists the base's price."""

    def __init__(self, token: str, *, url: str = IN_PROCESS_URL, app: Callable[..., Any] | None = None) -> None:
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=None if app is None else httpx2.ASGITransport(app),
        )

    async def snapshot(self, since: int, epoch: str) -> Snapshot:
        asked = f"/internal/snapshot?since={since}&epoch={epoch}&base={quote(self.base, safe='')}"
        return _decode(await self._call("GET", asked), Snapshot)

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        await self._call("POST", "/internal/usage", Shipment(records=tuple(records)))

    async def report_uses(self, last: Sequence[tuple[str, int]]) -> None:
        await self._call("POST", "/internal/key-uses", KeyUsage(last=tuple(last)))

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        await self._call("POST", "/internal/adapter-acts", AdapterActs(acts=tuple(acts)))

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        wish = LeaseWish(edge=edge, tenant=tenant, nanousd=nanousd, key=key)
        return _decode(await self._call("POST", "/internal/leases", wish), Lease)

    async def give_back(self, edge: str) -> None:
        await self._call("DELETE", f"/internal/leases/{edge}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, body: object = None) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        try:
            reply = await self._client.request(method, path, content=content)
        except httpx2.HTTPError as error:
            raise ControlUnavailable(f"the control plane does not answer ({type(error).__name__})") from error
        if not reply.is_success:
            raise ControlUnavailable(f"the control plane answered {reply.status_code}")
        return bytes(reply.content)


def _decode(body: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ControlUnavailable(f"the control plane's answer cannot be read: {error}") from error
