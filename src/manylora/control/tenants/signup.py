"""Sign-up of a tenant: its row, its first credit and its first key, in one transaction."""

from manylora.clock import Clock
from manylora.config.settings import plan_weight, signup_limits
from manylora.control.calendar import DAY_MS
from manylora.control.control import Control
from manylora.control.tenants.attempts import Attempts, counted_address
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.credit import grant_credit
from manylora.control.tenants.keys import Key, issue_key, key_facts
from manylora.control.tenants.limits import unknown_bases
from manylora.control.tenants.logins import store_password
from manylora.control.tenants.tenants import DEFAULT_PLAN, Tenant, create_tenant
from manylora.control.wallet.book import GrantKind
from manylora.control.wallet.wallet import GrantTerms
from manylora.errors import RequestRateExceeded, SignupClosed
from manylora.tenancy import CUSTOMER_SCOPES, Limits

SIGNUPS_PER_HOUR = 5
"""Limit for one address."""
HOUR_S = 3600.0


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
    password_hash: str | None = None,
) -> tuple[Tenant, Key, str]:
    """Create a tenant with its first credit and its first key; return tenant, key, and the key's whole text.

    weight          None: what `control.plan_weights` gives the plan, or 1
    credit_nanousd  None: what `control.signup_credit_nanousd` gives
    password_hash   of its login, from `PasswordHasher.hashed`; None: it gets none
    """
    credit = control.config.control.signup_credit_nanousd if credit_nanousd is None else credit_nanousd
    if weight is None:
        weight = plan_weight(control.config, plan) or 1
    now_ms = control.now_ms()
    terms = GrantTerms() if credit_nanousd is not None else signup_terms(control, now_ms)
    async with control.database.write() as connection:
        tenant = await create_tenant(
            connection, code, now_ms=now_ms, name=name, email=email, plan=plan, weight=weight, limits=limits
        )
        await grant_credit(
            connection,
            tenant.id,
            credit,
            grant_id=f"signup-{tenant.uuid}",
            reason="sign-up",
            now_ms=now_ms,
            terms=terms,
        )
        key, text = await issue_key(
            connection, control.pepper, tenant.id, now_ms=now_ms, scopes=CUSTOMER_SCOPES, name="first key"
        )
        if password_hash is not None:
            await store_password(connection, tenant.id, password_hash, now_ms=now_ms)
        facts = {"plan": plan, "weight": weight, "limits": tenant.facts.limits, "credit_nanousd": credit}
        await record(connection, actor, "create", "tenant", tenant.id, tenant=tenant.id, after=facts)
        await record(connection, actor, "create", "key", key.facts.id, tenant=tenant.id, after=key_facts(key))
    return tenant, key, text


def signup_terms(control: Control, now_ms: int) -> GrantTerms:
    """Return the terms of the credit that a sign-up gives: it is free, and ends after `control.signup_credit_days`."""
    days = control.config.control.signup_credit_days
    return GrantTerms(kind=GrantKind.FREE, expires_ms=now_ms + days * DAY_MS if days else None)


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
        self._is_open = is_open
        self._attempts = Attempts(clock, most=SIGNUPS_PER_HOUR, window_s=HOUR_S)

    def count(self, address: str) -> None:
        """Count a sign-up. Raise `SignupClosed`, or `RequestRateExceeded` with the time to wait."""
        if not self._is_open:
            raise SignupClosed("tenants of this server are made by its operator (control.signup_open is off)")
        subject = counted_address(address)
        if wait_s := self._attempts.wait_s(subject):
            raise RequestRateExceeded(
                f"Rate limit exceeded: {SIGNUPS_PER_HOUR} sign-ups an hour from one address", wait_s=wait_s
            )
        self._attempts.count(subject)
