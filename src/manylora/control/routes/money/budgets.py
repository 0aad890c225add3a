"""Routes of budgets: a tenant's own, and those that the operator makes for it."""

from fastapi import APIRouter, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.budgets.budgets import Budget, budget_states, create_budget, end_budget
from manylora.control.budgets.spending import give_alerts
from manylora.control.control import Control
from manylora.control.http.budget_schemas import BudgetBody, BudgetList, NewBudget
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, TenantDep, requires
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.keys import get_key
from manylora.control.zones import PeriodKind
from manylora.errors import InsufficientPermissions
from manylora.http.callers import Caller
from manylora.tenancy import Scope

router = APIRouter()
operators = APIRouter(prefix="/admin", tags=["admin"], dependencies=requires(Scope.ADMIN))
own = APIRouter(prefix="/v1/account/budgets", tags=["account"])


@operators.get("/tenants/{tenant}/budgets")
async def list_budgets(control: ControlDep, tenant: TenantDep) -> BudgetList:
    """List a tenant's budgets with what is spent of each in its present period."""
    return await _list(control, tenant.id)


@operators.post("/tenants/{tenant}/budgets", status_code=201)
async def create(control: ControlDep, actor: ActorDep, tenant: TenantDep, body: NewBudget) -> BudgetBody:
    """Make a budget that its tenant cannot end."""
    return await _create(control, actor, tenant.id, body, is_operators=True)


@operators.delete("/budgets/{budget}", status_code=204)
async def end(control: ControlDep, actor: ActorDep, budget: str) -> Response:
    """End a budget of any tenant."""
    async with control.database.write() as connection:
        await _record(connection, actor, "end", await end_budget(connection, budget, now_ms=actor.at_ms))
    return Response(status_code=204)


@own.get("", dependencies=requires(Scope.READ))
async def list_own(control: ControlDep, caller: CallerDep) -> BudgetList:
    """List the caller's own budgets with what is spent of each in its present period."""
    return await _list(control, caller.tenant)


@own.post("", status_code=201, dependencies=requires(Scope.MANAGE))
async def create_own(control: ControlDep, caller: CallerDep, actor: ActorDep, body: NewBudget) -> BudgetBody:
    """Make a budget of the caller's own tenant, of one of its keys, or of an adapter that it uses."""
    return await _create(control, actor, caller.tenant, body, is_operators=False)


@own.delete("/{budget}", status_code=204, dependencies=requires(Scope.MANAGE))
async def end_own(control: ControlDep, caller: CallerDep, actor: ActorDep, budget: str) -> Response:
    """End one of the caller's own budgets. A key does not end a budget of itself."""
    async with control.database.write() as connection:
        ended = await end_budget(connection, budget, now_ms=actor.at_ms, tenant=caller.tenant)
        await _require_other_key(connection, caller, ended)
        await _record(connection, actor, "end", ended)
    return Response(status_code=204)


router.routes.extend((*operators.routes, *own.routes))


async def _require_other_key(connection: AsyncConnection, caller: Caller, budget: Budget) -> None:
    if budget.facts.key is None or caller.key is None:
        return
    if (await get_key(connection, caller.key)).facts.origin == budget.facts.key:
        raise InsufficientPermissions("a key does not end a budget of itself")


async def _list(control: Control, tenant: str) -> BudgetList:
    async with control.database.read() as connection:
        states = await budget_states(connection, tenant, control.now_ms())
    return BudgetList(budgets=[BudgetBody.of(state) for state in states])


async def _create(control: Control, actor: Actor, tenant: str, body: NewBudget, *, is_operators: bool) -> BudgetBody:
    async with control.database.write() as connection:
        budget = await create_budget(
            connection,
            tenant,
            name=body.name,
            period=PeriodKind(body.period),
            limit_nanousd=body.limit_nanousd,
            now_ms=actor.at_ms,
            zone=body.zone,
            key=body.key,
            adapter=body.adapter,
            is_hard=body.hard,
            is_operators=is_operators,
        )
        period = budget.period_at(actor.at_ms)
        await give_alerts(control.database, connection, budget, period, actor.at_ms)  # of what was spent before it
        await _record(connection, actor, "create", budget, after=body.model_dump())
        states = await budget_states(connection, tenant, actor.at_ms)
    return next(BudgetBody.of(state) for state in states if state.budget.facts.id == budget.facts.id)


async def _record(connection: AsyncConnection, actor: Actor, verb: str, budget: Budget, after: object = None) -> None:
    await record(connection, actor, verb, "budget", budget.name, tenant=budget.tenant, after=after)
