"""The present state of the database as objects of a catalogue, and as the catalogue that declares them."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.billing.prices import price_versions
from manylora.control.catalogue.declared import MOST_OBJECTS, Objects, Place, Values, limits_values, public_config
from manylora.control.deployments.deployments import Deployment, deployments_of, list_deployments
from manylora.control.http.schemas import LimitsBody
from manylora.control.registry.repositories import Repository, find_repository, list_everything
from manylora.control.rollouts.rules import shown_rule
from manylora.control.tenants.tenants import RESERVED, Tenant, get_tenant, list_tenants
from manylora.errors import InvalidParameter, ResourceNotFound
from manylora.ids import TenantId
from manylora.tenancy import PriceFacts, TenantState

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Present:
    """The present state.

    contents  of repositories: what their deletion would end, `versions` and `aliases`
    """

    objects: Objects = field(default_factory=dict)
    contents: Objects = field(default_factory=dict)


async def present_state(connection: AsyncConnection, codes: Collection[str] | None = None) -> Present:
    """Return the state of tenants that are neither closed nor the server's own. Raise `InvalidParameter`.

    Args:  codes  of the tenants; None: all
    """
    found = Present()
    for price in await price_versions(connection):  # ascending: the latest announced version counts
        found.objects["price", price.base] = _price(price)
    after = ""
    while page := await list_tenants(connection, after=after, limit=_PAGE):
        after = page[-1].id
        chosen = [each for each in page if _is_declarable(each) and (codes is None or each.id in codes)]
        own = await _own_of(connection, [tenant.id for tenant in chosen])
        for tenant in chosen:
            found.objects["tenant", tenant.id] = _tenant(tenant)
            found.objects.update(own[tenant.id].objects)
            found.contents.update(own[tenant.id].contents)
        if len(found.objects) > MOST_OBJECTS:
            raise InvalidParameter(f"the server has more than {MOST_OBJECTS} objects, the limit of a catalogue")
    return found


async def present_object(connection: AsyncConnection, place: Place) -> tuple[Values | None, Values]:
    """Return one object, or None, and what its deletion would end."""
    kind, name, *names = place
    if kind == "price":
        versions = await price_versions(connection, name)
        return _price(versions[-1]) if versions else None, {}
    found = Present()
    try:
        tenant = await get_tenant(connection, name)
        if kind == "tenant":
            return _tenant(tenant) if _is_declarable(tenant) else None, {}
        if kind == "deployment":
            _add_deployments(await list_deployments(connection, tenant.id, [], "dedicated"), found)
        else:
            _add_repository(await find_repository(connection, tenant.id, names[0]), found)
    except ResourceNotFound:
        return None, {}
    return found.objects.get(place), found.contents.get(place, {})


async def _own_of(connection: AsyncConnection, codes: Collection[TenantId]) -> dict[str, Present]:
    """Return the repositories, aliases and deployments of tenants, in few statements for all of them."""
    found: dict[str, Present] = defaultdict(Present)
    if not codes:
        return found
    after = 0
    while page := await list_everything(connection, owners=codes, limit=_PAGE, after=after):
        after = page[-1].number
        for repository in page:
            _add_repository(repository, found[repository.owner])
    for deployment in await deployments_of(connection, codes):
        _add_deployments([deployment], found[str(deployment.tenant)])
    return found


def _add_deployments(deployments: Iterable[Deployment], found: Present) -> None:
    for deployment in deployments:
        values: Values = {"description": deployment.description, "config": public_config(deployment.config)}
        values["key"] = deployment.key
        found.objects["deployment", str(deployment.tenant), deployment.name] = values


def _add_repository(repository: Repository, found: Present) -> None:
    place = (repository.owner, repository.name)
    found.objects["repository", *place] = {
        "description": repository.description,
        "public": repository.is_public,
        "shared_with": sorted(repository.shared_with),
    }
    versions = [each.version for each in repository.versions]
    found.contents["repository", *place] = {"versions": versions, "aliases": sorted(repository.aliases)}
    for alias, rule in repository.rollouts.items():
        found.objects["alias", *place, alias] = shown_rule(rule) | {"sticky": rule.sticky}


def _is_declarable(tenant: Tenant) -> bool:
    return tenant.facts.state is not TenantState.CLOSED and tenant.id not in RESERVED


def _price(price: PriceFacts) -> Values:
    return {
        "input_nanousd": price.input_nanousd,
        "output_nanousd": price.output_nanousd,
        "cached_input_nanousd": price.cached_nanousd,
    }


def _tenant(tenant: Tenant) -> Values:
    facts = tenant.facts
    limits = limits_values(LimitsBody.of(facts.limits))
    return {"plan": tenant.plan, "weight": facts.weight, "state": facts.state.value, "limits": limits}


def catalogue_of(objects: Objects) -> Values:
    """Return the catalogue that declares these objects, as JSON. `objects`: each after the one that has it.

    It has no keys, those that pay for deployments included: it may be applied to a server that has others.
    """
    prices: Values = {}
    tenants: dict[str, Any] = {}
    for place, values in objects.items():
        match place:
            case ("price", base):
                prices[base] = dict(values)
            case ("tenant", code):
                tenants[code] = {**values, "repositories": {}, "deployments": {}}
            case ("repository", code, name):
                tenants[code]["repositories"][name] = {**values, "aliases": {}}
            case ("alias", code, repository, name):
                kept = {field: value for field, value in values.items() if value not in (None, "")}
                tenants[code]["repositories"][repository]["aliases"][name] = kept
            case ("deployment", code, name):
                tenants[code]["deployments"][name] = {field: values[field] for field in ("description", "config")}
    return {"form": 1, "prices": prices, "tenants": tenants}
