"""What an edge needs of the control plane: what has changed, a place for its usage records, and credit."""

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
"""Stands in the requests to a control plane of this process; nothing is resolved."""

Answer = TypeVar("Answer")


class ControlClient(Protocol):
    """A control plane somewhere. Every method raises `ControlUnavailable` when it does not answer."""

    async def snapshot(self, since: int, epoch: str) -> Snapshot:
        """What has changed after revision `since` of an epoch; -1 asks for everything."""

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        """Hand records over; when it returns they are in the ledger. Those that are there already change nothing."""

    async def report_uses(self, last: Sequence[tuple[str, int]]) -> None:
        """Tell when keys were last used here: (id, moment in milliseconds)."""

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        """Tell what operators did to adapters here, for the audit table."""

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        """Set up to so much more of a tenant's credit aside for this edge. 0 renews, or asks whether there is any.

        With a key: of what that key may spend in a month.
        """

    async def give_back(self, edge: str) -> None:
        """End the leases of an edge whose records have all been shipped."""

    async def close(self) -> None: ...


class HttpControlClient:
    """The control plane's `/internal` routes, over the network or, given its ASGI application, in this process."""

    base = ""
    """The base model that this server serves, once it is known; the control plane lists its price."""

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
