"""First start of a control plane: its own tenants, default prices, and one key for its operator."""

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.prices import ship_defaults
from manylora.control.control import Control
from manylora.control.process.pepper_mark import mark_pepper
from manylora.control.tenants.audit import on_the_machine, record
from manylora.control.tenants.keys import issue_key, key_facts, list_keys
from manylora.control.tenants.tenants import OPERATOR, get_tenant, insert_tenant
from manylora.errors import ResourceNotFound
from manylora.tenancy import DEFAULT_TENANT, Scope

ADMIN_KEY_NAME = "first admin key"
LATER_KEY_NAME = "made on the machine"


async def ensure_first_start(control: Control, *, takes_over: bool = False) -> str | None:
    """Create missing tenants and prices. Return the operator's first key, where keys are needed and it has none.

    Args:    takes_over  as in `mark_pepper`
    Raises:  `ConfigInvalid` for the database of a control plane with another pepper
    """
    async with control.database.write() as connection:
        await mark_pepper(connection, control, takes_over=takes_over)
        for tenant, name in ((DEFAULT_TENANT, "everybody without a key"), (OPERATOR, "the operator")):
            try:
                await get_tenant(connection, tenant)
            except ResourceNotFound:
                await insert_tenant(connection, tenant, now_ms=control.now_ms(), name=name)
        await ship_defaults(connection)
        if not control.is_key_needed or await list_keys(connection, OPERATOR):
            return None
        return await _issue(connection, control, ADMIN_KEY_NAME)


async def make_admin_key(control: Control) -> str:
    """Create a further key for the operator, on the machine that has the database."""
    if (first := await ensure_first_start(control, takes_over=True)) is not None:
        return first
    async with control.database.write() as connection:
        return await _issue(connection, control, LATER_KEY_NAME)


async def _issue(connection: AsyncConnection, control: Control, name: str) -> str:
    scopes = tuple(Scope)
    key, text = await issue_key(connection, control.pepper, OPERATOR, now_ms=control.now_ms(), scopes=scopes, name=name)
    actor = on_the_machine(control)
    await record(connection, actor, "create", "key", key.facts.id, tenant=OPERATOR, after=key_facts(key))
    return text
