"""Routes of evaluations and promotions: `/v2/repos/{repo}/evaluation`, `…/promotions`, also under `/v1`."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from manylora.control.bases import base_names
from manylora.control.evaluations.promotions import (
    Promotion,
    begin_promotion,
    force_promotion,
    get_promotion,
    list_promotions,
)
from manylora.control.evaluations.questions import MAX_BYTES
from manylora.control.evaluations.sets import (
    DEFAULT_TOKENS,
    Evaluation,
    checked_evaluation,
    drop_evaluation,
    get_evaluation,
    set_evaluation,
)
from manylora.control.http.registry_schemas import Json
from manylora.control.http.schemas import RequestBody, iso
from manylora.control.registry.aliases import MAX_ALIASES
from manylora.control.registry.repositories import Repository, find_repository, own_for_change, unknown_repository
from manylora.control.routes.dependencies import (
    ActorDep,
    CallerDep,
    ControlDep,
    StoreDep,
    TenantDep,
    requires,
)
from manylora.control.tenants.audit import record
from manylora.errors import ResourceNotFound
from manylora.http.callers import Caller
from manylora.http.scopes import LISTING
from manylora.tenancy import Scope

EVALUATION = "/v2/repos/{repo}/evaluation"

routes = APIRouter(tags=["registry"])
operators = APIRouter(prefix="/admin/repos", tags=["admin"], dependencies=requires(Scope.ADMIN))


class NewEvaluation(RequestBody):
    """The evaluation of a repository. `questions`: JSON lines with `prompt` or `messages`, and `expected`."""

    metric: str
    questions: Annotated[str, Field(max_length=MAX_BYTES)]
    guards: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=MAX_ALIASES)] = Field(
        default_factory=list
    )
    max_tokens: int = Field(default=DEFAULT_TOKENS, alias="maxTokens")


class NewPromotion(RequestBody):
    version: Annotated[int, Field(ge=1)]


@routes.get(EVALUATION, summary="Show the evaluation of a repository", dependencies=requires(*LISTING))
async def show(control: ControlDep, caller: CallerDep, repo: str) -> Json:
    async with control.database.read() as connection:
        found = await find_repository(connection, caller.tenant, repo)
        _require_own(found, caller)
        return _evaluation_json(found.name, await get_evaluation(connection, found.number)) | {
            "questions": (await get_evaluation(connection, found.number)).text
        }


@routes.put(EVALUATION, summary="Attach an evaluation to a repository", dependencies=requires(Scope.MANAGE))
async def attach(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str, body: NewEvaluation) -> Json:
    found = checked_evaluation(body.metric, body.questions, body.guards, body.max_tokens)
    async with control.database.write() as connection:
        await set_evaluation(connection, caller.tenant, repo, found)
        told = _evaluation_json(repo, found)
        await record(connection, actor, "set", "evaluation", repo, tenant=caller.tenant, after=told)
    return told


@routes.delete(
    EVALUATION,
    summary="Remove the evaluation of a repository, and its guards",
    status_code=204,
    dependencies=requires(Scope.MANAGE),
)
async def remove(control: ControlDep, caller: CallerDep, actor: ActorDep, repo: str) -> None:
    async with control.database.write() as connection:
        repository = await own_for_change(connection, caller.tenant, repo)
        before = _evaluation_json(repo, await get_evaluation(connection, repository.number))
        await drop_evaluation(connection, repository.number)
        await record(connection, actor, "delete", "evaluation", repo, tenant=caller.tenant, before=before)


@routes.post(
    "/v2/repos/{repo}/aliases/{alias}/promotions",
    summary="Give an alias to a version, if its score is not lower",
    status_code=202,
    dependencies=requires(Scope.MANAGE),
)
async def promote(
    control: ControlDep,
    store: StoreDep,
    caller: CallerDep,
    actor: ActorDep,
    repo: str,
    alias: str,
    body: NewPromotion,
) -> Json:
    if caller.key is not None:  # the questions run with this key
        caller.require(Scope.INFER)
    bases = base_names(control.config)
    return promotion_json(await begin_promotion(store, caller, actor, repo, alias, body.version, bases))


@routes.get("/v2/repos/{repo}/promotions", summary="List promotions, the latest first", dependencies=requires(*LISTING))
async def list_all(
    control: ControlDep,
    caller: CallerDep,
    repo: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    before: Annotated[str, Query(max_length=96, description="The `before` of the page before.")] = "",
) -> Json:
    async with control.database.read() as connection:
        found = await find_repository(connection, caller.tenant, repo)
        _require_own(found, caller)
        page, older = await list_promotions(connection, found.owner, found.name, limit=limit, before=before)
    return {"data": [promotion_json(each) for each in page], "has_more": older is not None, "before": older}


@routes.get(
    "/v2/repos/{repo}/promotions/{promotion}", summary="Show a promotion's report", dependencies=requires(*LISTING)
)
async def show_promotion(
    control: ControlDep, store: StoreDep, caller: CallerDep, actor: ActorDep, repo: str, promotion: str
) -> Json:
    async with control.database.read() as connection:
        repository = await find_repository(connection, caller.tenant, repo)
    _require_own(repository, caller)
    found = await get_promotion(store, actor, caller.tenant, promotion)
    if found.repo != repository.name:
        raise ResourceNotFound(f"no promotion `{promotion[:80]}` of the repository {repository.name}")
    return promotion_json(found)


@operators.post("/{tenant}/{repo}/aliases/{alias}/promote")
async def force(
    control: ControlDep,
    store: StoreDep,
    owner: TenantDep,
    actor: ActorDep,
    repo: str,
    alias: str,
    body: NewPromotion,
) -> Json:
    """Give an alias to a version without a question, also a guarded one. The audit table has it as `force`."""
    bases = base_names(control.config)
    return promotion_json(await force_promotion(store, actor, owner.id, repo, alias, body.version, bases))


def _require_own(found: Repository, caller: Caller) -> None:
    if found.owner != caller.tenant:  # a UUID may name one that another tenant shares
        raise unknown_repository(found.uuid)


def _evaluation_json(repo: str, found: Evaluation) -> Json:
    count = len(found.questions)
    guards = list(found.guards)
    return {"repo": repo, "metric": found.metric, "count": count, "guards": guards, "maxTokens": found.max_tokens}


def promotion_json(found: Promotion) -> Json:
    """Return a promotion with its report."""
    return {
        "id": found.id,
        "repo": found.repo,
        "alias": found.alias,
        "version": found.version,
        "current": found.current,
        "state": found.state.value,
        "reason": found.reason,
        "batch": found.batch or None,
        "report": found.report,
        "forced": found.is_forced,
        "created": iso(found.created_ms),
        "ended": None if found.ended_ms is None else iso(found.ended_ms),
    }


router = APIRouter()
router.include_router(routes)
router.include_router(routes, prefix="/v1")
