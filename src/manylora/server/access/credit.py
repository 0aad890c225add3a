"""Credit of tenants at the edge: an edge spends only the credit that the control plane leases to it.

A request holds its highest cost before it begins: the prompt and the whole budget. At its end it pays its actual cost.
If the lease is too small for a request, the edge asks for more; it has one such question a tenant under way at a time.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from manylora.clock import Clock
from manylora.errors import ControlUnavailable, QuotaExhausted
from manylora.ids import KeyId, TenantId
from manylora.money import dollars
from manylora.server.access.control_client import ControlClient
from manylora.tenancy import Lease, PriceFacts

log = logging.getLogger(__name__)

REASONS = {"credit": "the credit is used up", "budget": "this month's budget is used up"}
KEY_REASON = "this key's budget of this month is used up"


@dataclass(slots=True)
class _Account:
    """One lease of a tenant's credit or of a key's budget. All amounts are in nano-dollars.

    key       the origin of a key, or the id of a budget; empty for the tenant's credit
    granted   sum of the grants since this edge began
    spent     sum of the charges since this edge began
    reserved  sum that requests under way hold
    renew_ms  half-way to the lease's end; the edge prolongs the lease from this moment on
    """

    tenant: TenantId
    key: str
    granted: int = 0
    spent: int = 0
    reserved: int = 0
    expires_ms: float = 0
    renew_ms: float = 0
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def left(self) -> int:
        return self.granted - self.spent - self.reserved


@dataclass(slots=True)
class Hold:
    """The amount that one request holds in its tenant's account and in its key's."""

    accounts: list[_Account]
    price: PriceFacts
    nanousd: int
    is_settled: bool = False

    def settle(self, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0) -> None:
        """End the request: pay the charged tokens and release the rest. A second call changes nothing.

        Args:  cached_tokens  the cached tokens among `prompt_tokens`
        """
        if self.is_settled:
            return
        self.is_settled = True
        paid = self.price.cost_nanousd(
            prompt_tokens=prompt_tokens, cached_tokens=cached_tokens, completion_tokens=completion_tokens
        )
        for account in self.accounts:
            account.reserved -= self.nanousd
            account.spent += paid


class LeasedCredit:
    """All leases of this edge. It belongs to one event loop."""

    def __init__(self, client: ControlClient, clock: Clock, *, edge: str, lease_nanousd: int) -> None:
        self._client = client
        self._clock = clock
        self._edge = edge
        self._lease_nanousd = lease_nanousd
        self._accounts: dict[tuple[TenantId, str], _Account] = {}

    async def hold(
        self,
        tenant: TenantId,
        price: PriceFacts | None,
        *,
        prompt_tokens: int,
        budget_tokens: int,
        key: KeyId | None = None,
        has_budget: bool = False,
        budgets: Sequence[str] = (),
    ) -> Hold | None:
        """Hold the highest cost of a request; return None for a request that costs nothing.

        Args:    key         the origin of the caller's key. The edge counts the spending of every key, so that a
                             later budget includes earlier spending, as it does in the control plane
                 has_budget  whether the key has a monthly budget
                 budgets     the ids of the budgets that the request counts against, besides its tenant's own
        Raises:  `QuotaExhausted` if the credit or a budget is too small, `ControlUnavailable` if the control plane
                 does not answer a question for more
        """
        if price is None or not (price.input_nanousd or price.cached_nanousd or price.output_nanousd):
            return None
        # The highest cost of a prompt: no cached token, or cached tokens alone if the price of those is higher.
        cached = prompt_tokens if price.cached_nanousd > price.input_nanousd else 0
        cost = price.cost_nanousd(prompt_tokens=prompt_tokens, cached_tokens=cached, completion_tokens=budget_tokens)
        hold = Hold([], price, cost)
        for name in ("", *([] if key is None else [key]), *budgets):
            account = self._accounts.setdefault((tenant, name), _Account(tenant, name))
            try:
                if not name or has_budget or name in budgets:
                    await self._require(account, cost)
            except BaseException:
                hold.settle(0, 0)
                raise
            account.reserved += cost
            hold.accounts.append(account)
        return hold

    async def _require(self, account: _Account, cost: int) -> None:
        now_ms = 1000 * self._clock.wall_s()
        # One attempt a request, even without a renewed lease: a wrong clock must not cause a loop.
        if account.expires_ms and now_ms >= account.renew_ms:
            async with account.asking:
                if now_ms >= account.renew_ms:
                    await self._prolong(account, is_expired=now_ms >= account.expires_ms)
        while account.left < cost:
            async with account.asking:
                if account.left < cost:
                    missing = cost - account.left
                    lease = await self._ask(account, max(missing, self._lease_nanousd))
                    if account.left < cost:
                        _refuse(lease, account, cost)

    async def _ask(self, account: _Account, nanousd: int) -> Lease:
        asked_ms = 1000 * self._clock.wall_s()
        lease = await self._client.lease(self._edge, account.tenant, nanousd, account.key)
        # The lease lasts as long as the control plane says, whatever this machine's clock shows; it counts from the
        # question on, which no answer precedes.
        lasting_ms = lease.expires_ms - (lease.now_ms or asked_ms)
        account.granted, account.expires_ms = lease.granted_nanousd, asked_ms + lasting_ms
        account.renew_ms = asked_ms + lasting_ms / 2
        return lease

    async def _prolong(self, account: _Account, *, is_expired: bool) -> None:
        """Renew the lease, or learn the state of an expired one, before the edge asks for more.

        The grant of an ended lease shrinks to its spent part. The edge asks anew for the amounts that requests hold.
        Without an answer the lease stays valid until it expires, so that requests go on.
        """
        try:
            await self._ask(account, 0)
        except ControlUnavailable as error:
            if is_expired:
                raise
            log.warning("lease.not_prolonged tenant=%s error=%s", account.tenant, error.message)


def _refuse(lease: Lease, account: _Account, cost: int) -> NoReturn:
    reason = lease.told or (KEY_REASON if account.key else REASONS.get(lease.reason, REASONS["credit"]))
    raise QuotaExhausted(
        f"You exceeded your current quota: {reason}. This request may cost {dollars(cost)}; "
        f"{dollars(max(0, account.left))} are left"
    )
