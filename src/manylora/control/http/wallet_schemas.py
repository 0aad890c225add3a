"""JSON of wallets, as pydantic models."""

from collections.abc import Sequence

from pydantic import BaseModel

from manylora.control.http.schemas import BalanceBody, iso
from manylora.control.tenants.credit import Balance
from manylora.control.wallet.reading import GrantState, WalletEntry


class WalletGrantBody(BaseModel):
    """A grant. `left`: neither spent nor expired; `held`: the part of it that servers have leased for requests."""

    id: str
    kind: str
    priority: int
    nanousd: int
    spent_nanousd: int
    expired_nanousd: int
    left_nanousd: int
    held_nanousd: int
    reason: str
    created: str
    expires: str | None

    @staticmethod
    def of(grant: GrantState) -> "WalletGrantBody":
        names = set(WalletGrantBody.model_fields) - {"created", "expires"}
        expires = None if grant.expires_ms is None else iso(grant.expires_ms)
        values = {name: getattr(grant, name) for name in names}
        return WalletGrantBody(**values, created=iso(grant.created_ms), expires=expires)


class WalletBody(BaseModel):
    """A tenant's balance and its grants in the order in which they are drawn; those used up come last.

    `after`: the `after` of the next page of grants; null on the last page.
    """

    tenant: str
    balance: BalanceBody
    overdraft_nanousd: int
    grants: list[WalletGrantBody]
    has_more: bool
    after: str | None

    @staticmethod
    def of(
        tenant: str, balance: Balance, overdraft: int, grants: Sequence[GrantState], after: str | None
    ) -> "WalletBody":
        return WalletBody(
            tenant=tenant,
            balance=BalanceBody.of(balance),
            overdraft_nanousd=overdraft,
            grants=[WalletGrantBody.of(grant) for grant in grants],
            has_more=after is not None,
            after=after,
        )


class WalletEntryBody(BaseModel):
    """A movement: grant, reserve, release, settle, withdraw, cover or expire. `grant` null: of the overdraft."""

    number: int
    kind: str
    grant: str | None
    edge: str | None
    ref: str | None
    nanousd: int
    at: str


class WalletEntries(BaseModel):
    """Movements, the newest first. `before`: the `before` of the next page; null on the last page."""

    entries: list[WalletEntryBody]
    has_more: bool
    before: int | None

    @staticmethod
    def of(entries: Sequence[WalletEntry], before: int | None) -> "WalletEntries":
        names = set(WalletEntryBody.model_fields) - {"at"}
        bodies = [
            WalletEntryBody(**{name: getattr(each, name) for name in names}, at=iso(each.at_ms)) for each in entries
        ]
        return WalletEntries(entries=bodies, has_more=before is not None, before=before)
