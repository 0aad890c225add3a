"""Routes of wallets: a tenant's own, and the operator's view of each."""

from typing import Annotated

from fastapi import APIRouter, Query

from manylora.control.control import Control
from manylora.control.http.wallet_schemas import WalletBody, WalletEntries
from manylora.control.routes.billing import Before, PageSize
from manylora.control.routes.dependencies import CallerDep, ControlDep, TenantDep, requires
from manylora.control.tenants.credit import balance_of
from manylora.control.wallet.reading import MOST_GRANTS, entries_page, grants_in_order
from manylora.control.wallet.wallet import overdraft_of
from manylora.tenancy import Scope

After = Annotated[str, Query(max_length=64, description="The `after` of the page before.")]

router = APIRouter()
operators = APIRouter(prefix="/admin/tenants/{tenant}/wallet", tags=["admin"], dependencies=requires(Scope.ADMIN))
own = APIRouter(prefix="/v1/account/wallet", tags=["account"], dependencies=requires(Scope.READ))


@operators.get("")
async def wallet(
    control: ControlDep, tenant: TenantDep, after: After = "", limit: PageSize = MOST_GRANTS
) -> WalletBody:
    """Show a tenant's balance and its grants, in the order in which they are drawn."""
    return await _wallet(control, tenant.id, after, limit)


@operators.get("/entries")
async def entries(
    control: ControlDep, tenant: TenantDep, before: Before = None, limit: PageSize = 100
) -> WalletEntries:
    """List the movements of a tenant's wallet, the newest first."""
    return await _entries(control, tenant.id, before, limit)


@own.get("")
async def own_wallet(
    control: ControlDep, caller: CallerDep, after: After = "", limit: PageSize = MOST_GRANTS
) -> WalletBody:
    """Show the caller's own balance and grants, in the order in which they are drawn."""
    return await _wallet(control, caller.tenant, after, limit)


@own.get("/entries")
async def own_entries(
    control: ControlDep, caller: CallerDep, before: Before = None, limit: PageSize = 100
) -> WalletEntries:
    """List the movements of the caller's own wallet, the newest first."""
    return await _entries(control, caller.tenant, before, limit)


router.routes.extend((*operators.routes, *own.routes))


async def _wallet(control: Control, tenant: str, after: str, limit: int) -> WalletBody:
    async with control.database.read() as connection:
        balance = await balance_of(connection, tenant, control.now_ms())
        owed = await overdraft_of(connection, tenant)
        page = await grants_in_order(connection, tenant, after=after, limit=limit)
        return WalletBody.of(tenant, balance, owed, *page)


async def _entries(control: Control, tenant: str, before: int | None, limit: int) -> WalletEntries:
    async with control.database.read() as connection:
        return WalletEntries.of(*await entries_page(connection, tenant, before=before, limit=limit))
