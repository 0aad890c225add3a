"""Keys, limits and credit at the edge: the access check of each request."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from manylora.clock import Clock
from manylora.errors import ControlUnavailable, InvalidApiKey, TenantMismatch
from manylora.http.callers import ANONYMOUS, Caller, StoredKey, bearer_of, judge, key_of, require_active
from manylora.http.paths import SERVER_ROUTES
from manylora.http.scopes import ANY, KEYLESS, Scopes, require_any
from manylora.ids import KeyId, TenantId
from manylora.server.access.control_client import ControlClient
from manylora.server.access.credit import Hold, LeasedCredit
from manylora.server.access.directory import Directory
from manylora.server.access.fleet_limits import FleetLimits
from manylora.server.access.limits import Limiter, Reservation
from manylora.tenancy import DEFAULT_TENANT, AdapterAct, KeyFacts, Limits, Scope, TenantState

HUB_TOKEN = "hf_"


@dataclass(slots=True)
class Admission:
    """One request's share of its tenant's limits and credit, from the request's entry to its charge."""

    caller: Caller
    reservation: Reservation
    limiter: Limiter
    hold: Hold | None = None
    is_metered: bool = False
    """The meter settles the admission with the request's charge, which may come long after the reply."""

    @property
    def streams(self) -> int:
        """Number of the request's sequences that may be under way at one time."""
        return self.reservation.streams

    def headers(self) -> dict[str, str]:
        """Return the `x-ratelimit-…` headers as the caller's limits stand now."""
        return self.limiter.headers(self.reservation)

    def settle(
        self, charged_prompt_tokens: int, charged_completion_tokens: int, charged_cached_tokens: int = 0
    ) -> None:
        """Return the unused part to limits and credit. A second call changes nothing.

        Args:  charged_cached_tokens  the cached tokens among `charged_prompt_tokens`
        """
        self.reservation.settle(charged_prompt_tokens + charged_completion_tokens)
        if self.hold is not None:
            self.hold.settle(charged_prompt_tokens, charged_completion_tokens, charged_cached_tokens)


class Access:
    """Keys, limits and credit of one edge. Without a directory every caller may use everything."""

    def __init__(
        self,
        clock: Clock,
        *,
        is_key_needed: bool = False,
        directory: Directory | None = None,
        leased: LeasedCredit | None = None,
        free_bases: Sequence[str] = (),
        only_tenant: str = "",
    ) -> None:
        """`only_tenant`: the tenant of a dedicated deployment, whose requests alone are served; empty: all tenants'."""
        self.is_key_needed = is_key_needed
        self.directory = directory
        self._clock = clock
        self._leased = leased
        self._free_bases = frozenset(free_bases)
        self._only_tenant = only_tenant
        self._limiter = Limiter(clock)
        self.fleet: FleetLimits | None = None

    def join_fleet(self, client: ControlClient, edge: str) -> FleetLimits:
        """Share the limits with the other edges of a control plane. Return the exchange, for the caller to run."""
        self.fleet = FleetLimits(client, self._clock, self._limiter, edge=edge)
        return self.fleet

    def identify(self, method: str, path: str, authorization: str, path_tenant: str | None) -> Caller:
        """Return the caller of a request without a check of its scopes. A route without scopes ignores the key.

        Args:    authorization  the header's text, empty where there is none
                 path_tenant    the tenant of a deployment's path, None where there is none
        Raises:  `InvalidApiKey`, `ControlUnavailable`
        """
        if not self.is_key_needed:
            return self._open_caller(bearer_of(authorization), TenantId(path_tenant or DEFAULT_TENANT))
        if not _scopes_of(method, path, ANY):
            return ANONYMOUS if path_tenant is None else Caller(tenant=TenantId(path_tenant))
        return self._caller_of(self._key(authorization))

    def is_operators(self, authorization: str) -> bool:
        """Return whether a header has a valid key of the scope `admin`; for routes that need no key."""
        try:
            caller = self._caller_of(self._key(authorization))
        except (InvalidApiKey, ControlUnavailable):
            return False
        return caller.state is TenantState.ACTIVE and Scope.ADMIN in caller.scopes

    def require_active(self, caller: Caller) -> None:
        """Raise `TenantSuspended` unless the caller's tenant is active."""
        require_active(caller.tenant, caller.state)

    def authorise(self, caller: Caller, method: str, path: str, path_tenant: str | None) -> None:
        """Check the caller's scopes and tenant. Raises `InsufficientPermissions`, `TenantMismatch`.

        An unknown path needs a key of any scope, so that callers without a key cannot probe for paths. A replica of a
        dedicated deployment serves its tenant, and the operator's routes to a key of the operator.
        """
        scopes = _scopes_of(method, path, KEYLESS)
        is_operators = self.is_key_needed and scopes == (Scope.ADMIN,)
        if self._only_tenant and caller.tenant != self._only_tenant and not is_operators:
            raise TenantMismatch("the key is of another tenant than this deployment")
        if not self.is_key_needed:
            return
        require_any(caller.scopes, scopes)
        if path_tenant is not None and path_tenant != caller.tenant:
            raise TenantMismatch("the key is of another tenant than the path")

    async def learn(self) -> None:
        """Fetch changes from the control plane at once, if it answers."""
        if self.directory is not None:
            with contextlib.suppress(ControlUnavailable):
                await self.directory.refresh()

    async def note_act(self, act: AdapterAct) -> None:
        """Report an operator's act on an adapter to the control plane, if there is one."""
        if self.directory is not None:
            await self.directory.report_act(act)

    def batch_caller(self, tenant: TenantId, key: KeyId | None, origin: KeyId | None) -> Caller:
        """Return the caller of a line of a batch: the key that created the batch, or one that rotations made of it.

        Raises `InvalidApiKey` if no such key is valid any more, `InsufficientPermissions`, `TenantSuspended`.
        """
        if not self.is_key_needed:
            caller = self._open_caller("", tenant)
        else:
            found = None if key is None or self.directory is None else self.directory.key(key)
            if found is None and origin is not None and self.directory is not None:
                found = self.directory.key_of_origin(origin)
            is_past = found is not None and found.expires_ms is not None
            if found is None or (is_past and (found.expires_ms or 0) <= 1000 * self._clock.wall_s()):
                raise InvalidApiKey("the key of the batch is not valid any more")
            caller = self._caller_of(found)
            require_any(caller.scopes, (Scope.INFER,))
        self.require_active(caller)
        return replace(caller, is_batch=True)

    def state_of(self, tenant: TenantId) -> TenantState:
        """Return the state of a tenant; an unknown one counts as active."""
        facts = None if self.directory is None else self.directory.tenant(tenant)
        return TenantState.ACTIVE if facts is None else facts.state

    def enter(self, caller: Caller, *, sequences: int) -> Admission:
        """Count a request against the caller's limits, before any work for it. Raises `LimitExceeded`.

        `Admission.streams` of its `sequences` may be under way at one time.
        """
        limits, is_batch = dict(caller.limits), caller.is_batch
        streams = self._limiter.streams_left(limits, sequences, is_batch=is_batch)
        reservation = self._limiter.enter(limits, streams=streams, is_batch=is_batch)
        return Admission(caller, reservation, self._limiter)

    def enter_base(self, admission: Admission, base: str) -> None:
        """Count a request against the caller's limits of its base. `Admission.streams` may become fewer.

        Raises `LimitExceeded`.
        """
        own = {
            f"{name}, base {base}": each
            for name, limits in admission.caller.limits
            for each in limits.bases
            if each.base == base
        }
        if own:
            self._limiter.narrow(admission.reservation, own)

    async def share(self, admission: Admission) -> None:
        """Take the request's part of the fleet's limits, after `enter` and again after `enter_base`.

        `Admission.streams` may become fewer. On a server alone it does nothing. Raises `LimitExceeded`.
        """
        if self.fleet is not None and admission.reservation.held:
            await self.fleet.enter(admission.reservation)

    async def reserve(
        self, admission: Admission, *, base: str, prompt_tokens: int, budget_tokens: int, adapter: str | None = None
    ) -> None:
        """Reserve a request's largest use in the caller's limits and credit; `Admission.settle` returns the rest.

        Args:    base     the name of the base model, which decides the price
                 adapter  its name as the caller's tenant calls it, for the budgets; None: the base model
        Raises:  `LimitExceeded`, `QuotaExhausted`, `ControlUnavailable`
        """
        caller = admission.caller
        self._limiter.reserve(admission.reservation, prompt_tokens + budget_tokens)
        if self.fleet is not None and admission.reservation.held:
            await self.fleet.reserve(admission.reservation)
        if caller.key is None or self._leased is None or self.directory is None or base in self._free_bases:
            return
        price = self.directory.price(base, int(1000 * self._clock.wall_s()), is_batch=caller.is_batch)
        admission.hold = await self._leased.hold(
            caller.tenant,
            price,
            prompt_tokens=prompt_tokens,
            budget_tokens=budget_tokens,
            key=caller.origin,
            has_budget=caller.has_budget,
            budgets=self._budgets(caller, adapter),
        )

    def _budgets(self, caller: Caller, adapter: str | None) -> list[str]:
        """Return the ids of the budgets that a request counts against and that are not its whole tenant's."""
        facts = None if self.directory is None else self.directory.tenant(caller.tenant)
        return [] if facts is None else [each.id for each in facts.budgets if each.covers(caller.origin, adapter)]

    def _key(self, authorization: str) -> KeyFacts:
        """Return the facts of the key in a header. Raises `InvalidApiKey`, `ControlUnavailable`."""
        assert self.directory is not None, "keys are needed where there is a directory"
        key_id, secret = key_of(authorization)
        self.directory.require_fresh()
        key = self.directory.key(key_id)
        judge(
            None if key is None else _stored(key),
            secret,
            pepper=self.directory.pepper,
            now_ms=1000 * self._clock.wall_s(),
            is_key_needed=True,
        )
        assert key is not None, "an unknown key is not valid"
        self.directory.note_use(key.id)
        return key

    def _caller_of(self, key: KeyFacts) -> Caller:
        assert self.directory is not None, "keys are needed where there is a directory"
        tenant = self.directory.tenant(key.tenant)
        if tenant is None:
            raise InvalidApiKey("the key is not valid")
        named = ((f"tenant {tenant.id}", tenant.limits), (f"key {key.origin}", key.limits))
        return Caller(
            tenant=tenant.id,
            key=key.id,
            origin=key.origin,
            has_budget=key.limits.monthly_budget_nanousd is not None,
            scopes=key.held,
            state=tenant.state,
            weight=tenant.weight,
            limits=tuple((name, limits) for name, limits in named if limits != Limits()),
        )

    def _open_caller(self, text: str, tenant: TenantId) -> Caller:
        """Return the caller of a server without keys: the tenant's state and limits apply, its credit does not."""
        facts = None if self.directory is None else self.directory.tenant(tenant)
        limits = () if facts is None or facts.limits == Limits() else ((f"tenant {tenant}", facts.limits),)
        return Caller(
            tenant=tenant,
            scopes=tuple(Scope),
            state=TenantState.ACTIVE if facts is None else facts.state,
            weight=1 if facts is None else facts.weight,
            limits=limits,
            source_token=text if text.startswith(HUB_TOKEN) else "",
        )


def _stored(key: KeyFacts) -> StoredKey:
    return StoredKey(
        tenant=key.tenant, secret_hash=key.secret_hash, expires_ms=key.expires_ms, is_revoked=key.is_revoked
    )


def _scopes_of(method: str, path: str, otherwise: Scopes) -> Scopes:
    """Return the scopes of a route.

    An unknown method has the scopes of the path's first method, and an unknown path has the scopes `otherwise`.
    """
    found = SERVER_ROUTES.at(path)
    route = found.get(method) or next(iter(found.values()), None)
    return otherwise if route is None else route.scopes
