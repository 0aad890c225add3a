"""FastAPI dependencies of the control plane's routes: shared services, the caller, its scopes, its read budget.

Routers and routes declare them; no handler checks a key or a scope. `app/key_middleware.py` has authenticated the
caller by the table of `http/paths.py` before FastAPI reads a body; a test holds the declarations against that table.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from fastapi.params import Depends as Dependency
from starlette.requests import Request

from manylora.control.catalogue.shown_plans import ShownPlans
from manylora.control.control import Control
from manylora.control.edges.allowances import AllowancePools
from manylora.control.registry.intake import Intake
from manylora.control.registry.uploads import Uploads
from manylora.control.stored.objects import TenantStore
from manylora.control.tenants.audit import Actor, actor_of
from manylora.control.tenants.callers import caller_of
from manylora.control.tenants.passwords import PasswordHasher
from manylora.control.tenants.read_budget import ReadBudget
from manylora.control.tenants.sign_ins import SignInLimiter
from manylora.control.tenants.signup import SignupLimiter
from manylora.control.tenants.tenants import Tenant, get_tenant
from manylora.http.callers import Caller
from manylora.http.scopes import Scopes, require_any
from manylora.tenancy import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Objects that all routes of one application share, as `app.state.services`.

    started_ms  start of the application in milliseconds since 1970: the creation date of the shared deployment
    """

    control: Control
    intake: Intake
    uploads: Uploads
    store: TenantStore
    signups: SignupLimiter
    sign_ins: SignInLimiter
    hasher: PasswordHasher
    read_budget: ReadBudget
    allowances: AllowancePools
    plans: ShownPlans
    started_ms: int

    @staticmethod
    def of(control: Control) -> "Services":
        """Create the services of a control plane."""
        intake = Intake(control)
        return Services(
            control=control,
            intake=intake,
            uploads=Uploads(intake),
            store=TenantStore.of(control),
            signups=SignupLimiter(control.clock, is_open=control.config.control.signup_open),
            sign_ins=SignInLimiter(control.clock),
            hasher=PasswordHasher(),
            read_budget=ReadBudget(control.clock, control.config.control.reads_per_minute),
            allowances=AllowancePools(control.clock),
            plans=ShownPlans(),
            started_ms=control.now_ms(),
        )


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]


async def _control(services: ServicesDep) -> Control:
    return services.control


async def _intake(services: ServicesDep) -> Intake:
    return services.intake


async def _uploads(services: ServicesDep) -> Uploads:
    return services.uploads


async def _store(services: ServicesDep) -> TenantStore:
    return services.store


ControlDep = Annotated[Control, Depends(_control)]
IntakeDep = Annotated[Intake, Depends(_intake)]
UploadsDep = Annotated[Uploads, Depends(_uploads)]
StoreDep = Annotated[TenantStore, Depends(_store)]


async def _caller(control: ControlDep, request: Request) -> Caller:
    return await caller_of(control, request)


async def _actor(control: ControlDep, request: Request) -> Actor:
    return actor_of(control, request)


CallerDep = Annotated[Caller, Depends(_caller)]
ActorDep = Annotated[Actor, Depends(_actor)]


@dataclass(frozen=True, slots=True)
class RequiredScopes:
    """Dependency that raises `InsufficientPermissions` unless the caller's key holds one of `scopes`."""

    scopes: Scopes

    async def __call__(self, caller: CallerDep) -> None:
        require_any(caller.scopes, self.scopes)


async def count_read(services: ServicesDep, caller: CallerDep, request: Request) -> None:
    """Dependency that counts a GET against the tenant's read budget. The operator's reads are not counted.

    Raise `RequestRateExceeded` where the budget is spent.
    """
    if request.method == "GET" and Scope.ADMIN not in caller.scopes:
        await services.read_budget.take(caller.tenant, request.headers.get("authorization", ""))


def requires(*scopes: Scope) -> list[Dependency]:
    """Return the dependencies of a router or route whose callers need a key with at least one of `scopes`."""
    return [Depends(RequiredScopes(scopes)), Depends(count_read)]


async def _tenant_of_path(control: ControlDep, tenant: str) -> Tenant:
    async with control.database.read() as connection:
        return await get_tenant(connection, tenant)


TenantDep = Annotated[Tenant, Depends(_tenant_of_path)]
"""The tenant that the path parameter `tenant` names. Raise `ResourceNotFound` for an unknown one."""
