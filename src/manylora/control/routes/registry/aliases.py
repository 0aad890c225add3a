"""Routes of aliases: their rules, and the way back: `/v2/repos/{repo}/aliases…`, also under `/v1`."""

from dataclasses import asdict

from fastapi import APIRouter

from manylora.control.bases import base_names
from manylora.control.billing.arm_results import arm_results
from manylora.control.billing.periods import parse_period
from manylora.control.http.registry_schemas import Json, NewAlias, alias_json, repository_json
from manylora.control.http.schemas import iso
from manylora.control.registry.aliases import remove_alias, roll_back, rules_of, set_rule
from manylora.control.registry.repositories import find_repository, own_for_change, unknown_repository
from manylora.control.rollouts.rules import shown_rule
from manylora.control.routes.billing import From, Month, To
from manylora.control.routes.dependencies import ActorDep, CallerDep, ControlDep, requires
from manylora.control.tenants.audit import record
from manylora.http.scopes import LISTING
from manylora.rollouts.rollout import Rollout
from manylora.tenancy import Scope

ALIAS = "/v2/repos/{repo}/aliases/{alias}"

routes = APIRouter(tags=["registry"])


def told(rule: Rollout | None) -> object:
    """Return a rule as the audit table has it: the version alone for an alias of one version."""
    return None if rule is None else rule.main if rule.is_plain else shown_rule(rule)


@routes.get(ALIAS, summary="Show an alias with its shares and its earlier rules", dependencies=requires(*LISTING))
async def show_alias(control: ControlDep, caller: CallerDep, repo: str, alias: str) -> Json:
    async with control.database.read() as connection:
        found = await find_repository(connection, caller.tenant, repo)
        if found.owner != caller.tenant:  # a UUID may name one that another tenant shares
            raise unknown_repository(repo)
        return alias_json(found, alias, await rules_of(connection, found, alias))


@routes.get(ALIAS + "/results", summary="Sum your requests to an alias by version", dependencies=requires(Scope.READ))
async def show_results(
    control: ControlDep,
    caller: CallerDep,
    repo: str,
    alias: str,
    month: Month = "",
    first: From = "",
    last: To = "",
) -> Json:
    period = parse_period(month=month, first=first, last=last, now_ms=control.now_ms())
    async with control.database.read() as connection:
        found = await find_repository(connection, caller.tenant, repo)
        if found.owner != caller.tenant:
            raise unknown_repository(repo)
        found.find(alias)
        sums = await arm_results(connection, caller.tenant, found.name, alias, period)
    return {"repo": found.name, "alias": alias, "from": iso(period.begin_ms), "until": iso(period.end_ms)} | {
        "results": [asdict(each) for each in sums]
    }


@routes.put(ALIAS, summary="Let an alias mean a version, or several with shares", dependencies=requires(Scope.MANAGE))
async def put_alias(
    control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, alias: str, body: NewAlias
) -> Json:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        rule = await set_rule(
            connection,
            caller.tenant,
            repo,
            alias,
            body.shares(),
            sticky=body.sticky,
            shadow=body.shadow,
            base_names=base_names(control.config),
        )
        name, before = f"{old.name}/{alias}", told(old.rollouts.get(alias))
        await record(connection, actor, "set", "alias", name, tenant=old.owner, before=before, after=told(rule))
        found = await find_repository(connection, caller.tenant, repo)
    return repository_json(found, is_own=True)


@routes.post(
    ALIAS + "/rollback",
    summary="Restore the rule of an alias before its last change",
    dependencies=requires(Scope.MANAGE),
)
async def roll_alias_back(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, alias: str) -> Json:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        rule = await roll_back(connection, caller.tenant, repo, alias)
        name, before = f"{old.name}/{alias}", told(old.rollouts[alias])
        await record(connection, actor, "roll back", "alias", name, tenant=old.owner, before=before, after=told(rule))
        found = await find_repository(connection, caller.tenant, repo)
        return alias_json(found, alias, await rules_of(connection, found, alias))


@routes.delete(ALIAS, summary="Remove an alias", status_code=204, dependencies=requires(Scope.MANAGE))
async def delete_alias(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, alias: str) -> None:
    async with control.database.write() as connection:
        old = await own_for_change(connection, caller.tenant, repo)
        await remove_alias(connection, caller.tenant, repo, alias)
        name, before = f"{old.name}/{alias}", told(old.rollouts[alias])
        await record(connection, actor, "delete", "alias", name, tenant=old.owner, before=before)


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
