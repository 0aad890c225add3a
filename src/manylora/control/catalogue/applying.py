"""The steps of a plan, done one after the other, each with its audit row in a transaction of its own.

A step is done only if its object still is as the plan says: two catalogues at one time never undo what is not shown.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.bases import base_names
from manylora.control.billing.prices import set_price
from manylora.control.catalogue.declared import Values
from manylora.control.catalogue.planning import CatalogueStep, Verb, are_same
from manylora.control.catalogue.present import present_object
from manylora.control.catalogue.shown_plans import name_of
from manylora.control.deployments.deployments import (
    Deployment,
    change_deployment,
    create_deployment,
    delete_deployment,
)
from manylora.control.http.schemas import LimitsBody
from manylora.control.registry.aliases import remove_alias, set_rule
from manylora.control.registry.audit import record_repository
from manylora.control.registry.intake import Intake
from manylora.control.registry.operations import remove_repository
from manylora.control.registry.repositories import create_repository, own_for_change
from manylora.control.registry.sharing import set_description_and_shares
from manylora.control.storage.revisions import next_revision
from manylora.control.tenants.audit import Actor, record
from manylora.control.tenants.limits import require_known_bases
from manylora.control.tenants.signup import open_account
from manylora.control.tenants.tenants import get_tenant, set_state, set_terms
from manylora.errors import ManyloraError, StateChanged
from manylora.ids import TenantId
from manylora.tenancy import Limits, TenantState


@dataclass(slots=True)
class Outcome:
    """The steps that are done, and the first that failed.

    keys  tenant → text of the first key of a new tenant, which no later reply has
    """

    done: list[CatalogueStep] = field(default_factory=list)
    failed: CatalogueStep | None = None
    error: ManyloraError | None = None
    keys: dict[str, str] = field(default_factory=dict)


class Applying:
    """Does steps for one actor."""

    def __init__(self, intake: Intake, actor: Actor, shared: list[Deployment]) -> None:
        """`shared` has the deployments of the served bases."""
        self._intake = intake
        self._control = intake.control
        self._actor = actor
        self._shared = shared
        self._keys: dict[str, str] = {}

    async def run(self, steps: list[CatalogueStep]) -> Outcome:
        """Do the steps up to the first that fails. The same catalogue, applied again, has the rest as its plan."""
        outcome = Outcome(keys=self._keys)
        doing: Mapping[str, Callable[[CatalogueStep], Coroutine[None, None, None]]] = {
            "tenant": self._tenant,
            "price": self._price,
            "repository": self._repository,
            "alias": self._alias,
            "deployment": self._deployment,
        }
        for step in steps:
            try:
                await doing[step.place[0]](step)
            except ManyloraError as error:
                outcome.failed, outcome.error = step, error
                break
            outcome.done.append(step)
        return outcome

    async def _tenant(self, step: CatalogueStep) -> None:
        code, new = step.place[1], step.new or {}
        limits = LimitsBody.model_validate(new["limits"]).limits()
        if step.verb is Verb.CREATE:
            await self._open(code, new, limits)
            if new["state"] == TenantState.ACTIVE:
                return
        async with self._control.database.write() as connection:
            if step.verb is Verb.CHANGE:
                await _require_unchanged(connection, step)
                old = await get_tenant(connection, code)
                await require_known_bases(self._control, connection, limits, old.facts.limits)
                await set_terms(connection, code, limits=limits, weight=new["weight"], plan=new["plan"])
            if step.old is None or step.old["state"] != new["state"]:
                await set_state(connection, code, TenantState(new["state"]))
            await record(
                connection, self._actor, "change", "tenant", code, tenant=code, before=step.old, after=step.new
            )

    async def _open(self, code: str, new: Values, limits: Limits) -> None:
        async with self._control.database.read() as connection:
            await require_known_bases(self._control, connection, limits)
        *_, text = await open_account(
            self._control, self._actor, code, plan=new["plan"], weight=new["weight"], limits=limits
        )
        self._keys[code] = text

    async def _price(self, step: CatalogueStep) -> None:
        async with self._control.database.write() as connection:
            await _require_unchanged(connection, step)
            now_ms = self._control.now_ms()
            made = await set_price(connection, step.place[1], effective_ms=now_ms, now_ms=now_ms, **(step.new or {}))
            await record(
                connection, self._actor, "set", "price", made.base, tenant=None, before=step.old, after=step.new
            )

    async def _repository(self, step: CatalogueStep) -> None:
        owner, name = TenantId(step.place[1]), step.place[2]
        if step.verb is Verb.DELETE:
            await remove_repository(
                self._intake, self._actor, owner, name, require=partial(_require_unchanged, step=step)
            )
            return
        new, control = step.new or {}, self._control
        async with control.database.write() as connection:
            await _require_unchanged(connection, step)
            if step.verb is Verb.CREATE:
                found = await create_repository(
                    connection,
                    owner,
                    name,
                    now_ms=control.now_ms(),
                    most=control.config.control.max_repositories,
                    description=new["description"],
                    base_names=base_names(control.config),
                )
            else:
                found = await own_for_change(connection, owner, name)
            await set_description_and_shares(
                connection,
                found,
                description=new["description"],
                is_public=new["public"],
                shared_with=new["shared_with"],
            )
            await record_repository(connection, self._actor, step.verb, found, before=step.old, after=step.new)

    async def _alias(self, step: CatalogueStep) -> None:
        _, code, repo, alias = step.place
        async with self._control.database.write() as connection:
            await _require_unchanged(connection, step)
            if step.new is None:
                await remove_alias(connection, TenantId(code), repo, alias)
            else:
                await set_rule(
                    connection,
                    TenantId(code),
                    repo,
                    alias,
                    {int(version): share for version, share in step.new["weights"].items()},
                    sticky=step.new["sticky"],
                    shadow=step.new["shadow"],
                    base_names=base_names(self._control.config),
                )
            await self._record(connection, "delete" if step.new is None else "set", step)

    async def _deployment(self, step: CatalogueStep) -> None:
        _, code, name = step.place
        tenant, placer = TenantId(code), self._control.placer
        with_all: dict[str, Any] = {"shared": self._shared, "now_ms": self._control.now_ms()}  # of several types
        terms = with_all | {"hourly_nanousd": self._control.config.placement.hourly_nanousd, "placer": placer}
        async with self._control.database.write() as connection:
            await _require_unchanged(connection, step)
            if step.new is None:
                await delete_deployment(connection, tenant, name, **with_all)
            elif step.verb is Verb.CREATE:
                await create_deployment(connection, tenant, name, **terms, **step.new)
            else:
                await change_deployment(connection, tenant, name, is_whole=True, **terms, **step.new)
            await self._record(connection, step.verb, step)

    async def _record(self, connection: AsyncConnection, verb: str, step: CatalogueStep) -> None:
        kind, code, *names = step.place
        name = "/".join(names)
        await record(connection, self._actor, verb, kind, name, tenant=code, before=step.old, after=step.new)


async def _require_unchanged(connection: AsyncConnection, step: CatalogueStep) -> None:
    """Require that the object of a step is as the plan has it, until the transaction ends. Raise `StateChanged`."""
    await next_revision(connection)  # from here on no other transaction changes it
    found, contents = await present_object(connection, step.place)
    if found is not None and step.new is None:
        found |= contents
    if not are_same(found, step.old):
        raise StateChanged(
            f"{step.place[0]} `{name_of(step)}` has changed since the plan was made; look at the new plan"
        )
