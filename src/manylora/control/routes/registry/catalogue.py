"""The operator's routes of the catalogue: the present state, and a declared one put in force, `/admin/catalogue`."""

from typing import Annotated

from fastapi import APIRouter, Query

from manylora.control.catalogue.applying import Applying
from manylora.control.catalogue.checks import require_possible
from manylora.control.catalogue.declared import MOST_OBJECTS, DeclaredCatalogue, Values
from manylora.control.catalogue.planning import plan
from manylora.control.catalogue.present import catalogue_of, present_state
from manylora.control.catalogue.shown_plans import step_json
from manylora.control.deployments.deployments import shared_deployments
from manylora.control.routes.dependencies import ActorDep, ControlDep, ServicesDep, requires
from manylora.errors import InvalidParameter
from manylora.tenancy import Scope

router = APIRouter(prefix="/admin/catalogue", tags=["admin"], dependencies=requires(Scope.ADMIN))


@router.get("")
async def export(control: ControlDep) -> Values:
    """Show the present state as a catalogue: no keys, no balances, no versions."""
    async with control.database.read() as connection:
        return catalogue_of((await present_state(connection)).objects)


@router.put("")
async def apply(
    services: ServicesDep,
    actor: ActorDep,
    body: DeclaredCatalogue,
    is_dry: Annotated[bool, Query(alias="dryRun", description="Only return the plan.")] = False,
    prune: Annotated[bool, Query(description="Delete what the lists of the catalogue do not declare.")] = False,
    digest: Annotated[
        str | None, Query(max_length=64, description="Of the plan that was shown. Any other plan is refused.")
    ] = None,
) -> Values:
    """Put a declared catalogue in force, step by step. A failed step ends it; the reply has what is done."""
    control = services.control
    declared = body.objects(control.config)
    if len(declared) > MOST_OBJECTS:
        raise InvalidParameter(f"a catalogue has at most {MOST_OBJECTS} objects. Given: {len(declared)}")
    shared = shared_deployments(control.config, services.started_ms)
    async with control.database.read() as connection:
        present = await present_state(connection, body.tenants)
        pruned = body.lists() if prune else ()
        steps = plan(present.objects, declared, pruned=pruned, contents=present.contents)
        if not is_dry:
            services.plans.require(digest, steps)
        await require_possible(connection, control, steps, shared)
    shown = {"plan": [step_json(step) for step in steps], "digest": services.plans.show(steps)}
    if is_dry:
        return {**shown, "done": 0, "failed": None, "keys": {}}
    outcome = await Applying(services.intake, actor, shared).run(steps)
    failed = None
    if outcome.failed is not None and outcome.error is not None:
        failed = {**step_json(outcome.failed), "error": outcome.error.message, "code": outcome.error.row.code}
    return {**shown, "done": len(outcome.done), "failed": failed, "keys": outcome.keys}
