"""The client of the control plane's internal routes: snapshots of facts, usage records, and leases of credit."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from manylora.allowances import AllowanceAnswer, AllowanceReport
from manylora.errors import (
    BodyTooLarge,
    ControlUnavailable,
    InvalidParameter,
    LimitExceeded,
    ManyloraError,
    NameTaken,
    ResourceNotFound,
    StorageLimitExceeded,
    StorageUnavailable,
)
from manylora.http.dialects import VALIDATION_PREFIX
from manylora.ids import TenantId
from manylora.tenancy import (
    AdapterAct,
    AdapterActs,
    DeploymentUse,
    DeploymentUses,
    KeyUsage,
    Lease,
    LeaseWish,
    Shipment,
    Snapshot,
)
from manylora.usage import UsageRecord

TIMEOUT_S = 5.0
SHORT_TIMEOUT_S = 1.0
"""Seconds for an exchange of allowances, which a request may wait for and which an edge apart can do without."""
IN_PROCESS_URL = "http://control.invalid"
"""The URL in requests to a control plane of this process. No name is resolved for it."""

LONG_TIMEOUT_S = 30.0
"""Seconds for an exchange of bytes, which the control plane writes to its disk."""
REFUSALS: dict[str, type[ManyloraError]] = {
    kind.row.code: kind
    for kind in (
        BodyTooLarge,
        InvalidParameter,
        LimitExceeded,
        NameTaken,
        ResourceNotFound,
        StorageLimitExceeded,
        StorageUnavailable,
    )
}
"""The errors of the control plane that an edge's caller gets as they are, by their codes."""

Answer = TypeVar("Answer")


class _Refusal(msgspec.Struct):
    """The body of a refusal, in the dialect of the internal routes."""

    error: str
    code: str


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

    async def report_deployments(self, edge: str, uses: Sequence[DeploymentUse]) -> None:
        """Report this edge's requests to dedicated deployments; those to one that sleeps start it."""

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        """Lease up to `nanousd` more of a tenant's credit to this edge; 0 renews the lease, or asks for its state.

        With a key, the lease is a part of the key's budget for the month.
        """

    async def share_limits(self, report: AllowanceReport) -> AllowanceAnswer:
        """Exchange an edge's claims to the fleet's limits for allowances. A request waits for it: 1 s at most."""

    async def give_back(self, edge: str) -> None:
        """End the leases of an edge that has shipped all its records."""

    async def close(self) -> None: ...


class HttpControlClient:
    """The control plane's `/internal` routes, over the network or, given its ASGI application, in this process."""

    bases: tuple[str, ...] = ("",)
    """The names of the served base models, once they are known; the control plane lists their prices."""

    def __init__(self, token: str, *, url: str = IN_PROCESS_URL, app: Callable[..., Any] | None = None) -> None:
        self._client = httpx2.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=None if app is None else httpx2.ASGITransport(app),
        )
        self._sent: set[asyncio.Task[httpx2.Response]] = set()

    async def snapshot(self, since: int, epoch: str) -> Snapshot:
        served = "".join(f"&base={quote(base, safe='')}" for base in self.bases)
        asked = f"/internal/snapshot?since={since}&epoch={epoch}{served}"
        return decode_answer(await self._call("GET", asked), Snapshot)

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        await self._call("POST", "/internal/usage", Shipment(records=tuple(records)))

    async def report_uses(self, last: Sequence[tuple[str, int]]) -> None:
        await self._call("POST", "/internal/key-uses", KeyUsage(last=tuple(last)))

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        await self._call("POST", "/internal/adapter-acts", AdapterActs(acts=tuple(acts)))

    async def report_deployments(self, edge: str, uses: Sequence[DeploymentUse]) -> None:
        await self._call("POST", "/internal/deployment-uses", DeploymentUses(edge=edge, uses=tuple(uses)))

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        wish = LeaseWish(edge=edge, tenant=tenant, nanousd=nanousd, key=key)
        return decode_answer(await self._call("POST", "/internal/leases", wish), Lease)

    async def share_limits(self, report: AllowanceReport) -> AllowanceAnswer:
        answer = decode_answer(
            await self._call("POST", "/internal/allowances", report, wait_s=SHORT_TIMEOUT_S), AllowanceAnswer
        )
        if len(answer.allowances) != len(report.wishes):
            raise ControlUnavailable("the control plane's answer has another number of allowances than of wishes")
        return answer

    async def give_back(self, edge: str) -> None:
        await self._call("DELETE", f"/internal/leases/{edge}")

    async def close(self) -> None:
        if self._sent:
            await asyncio.wait(self._sent, timeout=TIMEOUT_S)
        await self._client.aclose()

    def _forget(self, sent: "asyncio.Task[httpx2.Response]") -> None:
        self._sent.discard(sent)
        if not sent.cancelled():
            sent.exception()  # a cancelled caller does not read it

    async def exchange(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        *,
        parameter: str | None = None,
        refusals: Mapping[str, type[ManyloraError]] = REFUSALS,
    ) -> bytes:
        """Send bytes and return those of the reply, for routes that may refuse what a caller asked for.

        Args:    parameter  the field of the caller's request that a refusal names
        Raises:  `ControlUnavailable`, and the errors in `refusals` with the control plane's text
        """
        wait_s = TIMEOUT_S if method == "GET" else LONG_TIMEOUT_S
        reply = await self._request(method, path, content, wait_s=wait_s)
        if not reply.is_success:
            raise _refusal_of(reply, parameter, refusals)
        return bytes(reply.content)

    async def _call(self, method: str, path: str, body: object = None, *, wait_s: float = TIMEOUT_S) -> bytes:
        content = None if body is None else msgspec.json.encode(body)
        reply = await self._request(method, path, content, wait_s=wait_s)
        if not reply.is_success:
            raise ControlUnavailable(f"the control plane answered {reply.status_code}")
        return bytes(reply.content)

    async def _request(
        self, method: str, path: str, content: bytes | None, *, wait_s: float = TIMEOUT_S
    ) -> httpx2.Response:
        # A request to a control plane in this process goes on when its caller is cancelled, as one over the network
        # does: a transaction that is cut short at its begin would hold the database's lock.
        sent = asyncio.create_task(self._client.request(method, path, content=content, timeout=wait_s))
        self._sent.add(sent)
        sent.add_done_callback(self._forget)
        try:
            return await asyncio.shield(sent)
        except httpx2.HTTPError as error:
            raise ControlUnavailable(f"the control plane does not answer ({type(error).__name__})") from error


def _refusal_of(
    reply: httpx2.Response, parameter: str | None, refusals: Mapping[str, type[ManyloraError]]
) -> ManyloraError:
    """Return the error of a reply; an unknown one, as of an older control plane, is no answer."""
    try:
        told = msgspec.json.decode(reply.content, type=_Refusal)
        kind = refusals[told.code]
    except (msgspec.DecodeError, KeyError):
        return ControlUnavailable(f"the control plane answered {reply.status_code}")
    message = told.error.removeprefix(VALIDATION_PREFIX)
    if kind is LimitExceeded:
        return LimitExceeded(message, parameter=parameter, wait_s=_wait_of(reply))
    return kind(message, parameter=parameter)


def _wait_of(reply: httpx2.Response) -> float | None:
    """Return the seconds of `Retry-After`; None: the reply has none."""
    told = reply.headers.get("retry-after", "")
    return float(told) if told.isascii() and told.isdigit() else None


def decode_answer(body: bytes, kind: type[Answer]) -> Answer:
    """Decode a reply. Raises `ControlUnavailable` for one of another form."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise ControlUnavailable(f"the control plane's answer cannot be read: {error}") from error
