"""Sign-up of a tenant: its row, its first credit and its first key, in one transaction."""

import ipaddress
from collections import OrderedDict

from manylora.clock import Clock
from manylora.config.settings import plan_weight, signup_limits
from manylora.control.control import Control
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.credit import grant_credit
from manylora.control.tenants.keys import Key, issue_key, key_facts
from manylora.control.tenants.limits import unknown_bases
from manylora.control.tenants.tenants import DEFAULT_PLAN, Tenant, create_tenant
from manylora.errors import RequestRateExceeded, SignupClosed
from manylora.tenancy import CUSTOMER_SCOPES, Limits

SIGNUPS_PER_HOUR = 5
"""Limit for one address."""
HOUR_S = 3600.0
MAX_ADDRESSES = 10_000


async def open_account(
    control: Control,
    actor: Actor,
    code: str,
    *,
    name: str = "",
    email: str | None = None,
    plan: str = DEFAULT_PLAN,
    weight: int | None = None,
    limits: Limits | None = None,
    credit_nanousd: int | None = None,
) -> tuple[Tenant, Key, str]:
    """Create a tenant with its first credit and its first key; return tenant, key, and the key's whole text.

    weight          None: what `control.plan_weights` gives the plan, or 1
    credit_nanousd  None: what `control.signup_credit_nanousd` gives
    """
    credit = control.config.control.signup_credit_nanousd if credit_nanousd is None else credit_nanousd
    if weight is None:
        weight = plan_weight(control.config, plan) or 1
    now_ms = control.now_ms()
    async with control.database.write() as connection:
        tenant = await create_tenant(
            connection, code, now_ms=now_ms, name=name, email=email, plan=plan, weight=weight, limits=limits
        )
        await grant_credit(
            connection, tenant.id, credit, grant_id=f"signup-{tenant.uuid}", reason="sign-up", now_ms=now_ms
        )
        key, text = await issue_key(
            connection, control.pepper, tenant.id, now_ms=now_ms, scopes=CUSTOMER_SCOPES, name="first key"
        )
        facts = {"plan": plan, "weight": weight, "limits": tenant.facts.limits, "credit_nanousd": credit}
        await record(connection, actor, "create", "tenant", tenant.id, tenant=tenant.id, after=facts)
        await record(connection, actor, "create", "key", key.facts.id, tenant=tenant.id, after=key_facts(key))
    return tenant, key, text


async def unknown_signup_bases(control: Control) -> list[str]:
    """Return a message for each base in `control.signup_limits` that limits of a tenant could not name now.

    Raises `ControlUnavailable` if the database cannot be used.
    """
    async with control.database.read() as connection:
        found = await unknown_bases(control, connection, signup_limits(control.config))
    return [f"control.signup_limits: {message}" for message in found]


class SignupLimiter:
    """Limits sign-ups without the operator: `control.signup_open` permits them, `SIGNUPS_PER_HOUR` bounds them."""

    def __init__(self, clock: Clock, *, is_open: bool) -> None:
        self._clock = clock
        self._is_open = is_open
        self._seen: OrderedDict[str, list[float]] = OrderedDict()  # address → moments of the last hour

    def count(self, address: str) -> None:
        """Count a sign-up. Raise `SignupClosed`, or `RequestRateExceeded` with the time to wait."""
        if not self._is_open:
            raise SignupClosed("tenants of this server are made by its operator (control.signup_open is off)")
        now_s, address = self._clock.monotonic_s(), _counted(address)
        recent = [moment for moment in self._seen.pop(address, []) if moment > now_s - HOUR_S]
        if len(recent) >= SIGNUPS_PER_HOUR:
            self._seen[address] = recent
            raise RequestRateExceeded(
                f"Rate limit exceeded: {SIGNUPS_PER_HOUR} sign-ups an hour from one address",
                wait_s=recent[0] + HOUR_S - now_s,
            )
        self._seen[address] = [*recent, now_s]
        while len(self._seen) > MAX_ADDRESSES:
            self._seen.popitem(last=False)


def _counted(address: str) -> str:
    """Return the address that counts as one caller: the /64 network of an IPv6 address, which has one holder."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed, 64), strict=False))
