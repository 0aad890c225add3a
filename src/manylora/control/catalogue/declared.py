"""The form of a declared catalogue, and the objects in it, flat."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from manylora.config.settings import Config, plan_weight
from manylora.control.billing.prices import MOST_NANOUSD, check_amounts
from manylora.control.deployments.deployments import MAX_CONFIG_BYTES, SECRET_FIELDS, check_deployment_name
from manylora.control.http.schemas import BaseName, LimitsBody, RequestBody, ShortText
from manylora.control.registry.aliases import check_alias_name
from manylora.control.registry.repositories import check_description, check_repository_name
from manylora.control.registry.sharing import MAX_SHARES, check_sharer
from manylora.control.rollouts.rules import new_rule
from manylora.control.tenants.tenants import MAX_WEIGHT, check_tenant_code
from manylora.errors import InvalidParameter
from manylora.rollouts.rollout import MAX_ARMS, POINTS

FORM = 1
MOST_OBJECTS = 20_000
"""Objects of one catalogue; bounds the work of one request."""
Values = dict[str, Any]  # values of several types
Place = tuple[str, ...]
"""(kind, names): `("alias", "acme", "triage", "prod")`."""
Objects = dict[Place, Values]


@contextmanager
def _told() -> Iterator[None]:
    """Raise an `InvalidParameter` of a check as an error of the form, which has the place of the value."""
    try:
        yield
    except InvalidParameter as error:
        raise PydanticCustomError("refused", "{message}", {"message": error.message}) from error


def _checked(check: Callable[[str], None]) -> AfterValidator:
    """Return the check of a single route as a check of the form."""

    def validated(text: str) -> str:
        with _told():
            check(text)
        return text

    return AfterValidator(validated)


def _config(config: dict[str, Any]) -> dict[str, Any]:  # JSON of the caller
    try:
        text = json.dumps(config, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError(
            "config", "a number is not finite, a text has half a character, or it is too deep"
        ) from error
    if len(text) > MAX_CONFIG_BYTES:
        raise PydanticCustomError(
            "config", "it has {given} bytes, over {most}", {"given": len(text), "most": MAX_CONFIG_BYTES}
        )
    return config


TenantCode = Annotated[ShortText, _checked(check_tenant_code)]
Sharer = Annotated[ShortText, _checked(check_sharer)]
RepositoryName = Annotated[str, _checked(check_repository_name)]
Description = Annotated[str, _checked(check_description)]
AliasName = Annotated[str, _checked(check_alias_name)]
DeploymentName = Annotated[str, _checked(check_deployment_name)]
DeploymentConfig = Annotated[dict[str, Any], AfterValidator(_config)]
VersionName = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")]
Amount = Annotated[int, Field(ge=0, le=MOST_NANOUSD)]
Share = Annotated[int, Field(ge=1, le=POINTS)]


class DeclaredAlias(RequestBody):
    """An alias: `version`, or `weights`, the percent of each version."""

    version: Annotated[int, Field(ge=1)] | None = None
    weights: Annotated[dict[VersionName, Share], Field(min_length=1, max_length=MAX_ARMS)] | None = None
    sticky: Annotated[str, Field(max_length=64)] | None = None
    shadow: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "DeclaredAlias":
        if (self.version is None) == (self.weights is None):
            raise PydanticCustomError("one_of", "give either `version` or `weights`")
        if self.weights is not None and sum(self.weights.values()) != POINTS:
            raise PydanticCustomError("weights", "the percents of `weights` make 100 together")
        with _told():
            new_rule(None, {int(each): share for each, share in self._weights().items()}, self.sticky, self.shadow)
        return self

    def _weights(self) -> dict[str, int]:
        return {str(self.version): POINTS} if self.weights is None else self.weights

    def values(self) -> Values:
        shares = dict(sorted(self._weights().items(), key=lambda each: int(each[0])))
        return {"weights": shares, "sticky": (self.sticky or "").lower(), "shadow": self.shadow}


class DeclaredRepository(RequestBody):
    """A repository. Its versions are uploaded, not declared."""

    description: Description = ""
    public: bool = False
    shared_with: Annotated[list[Sharer], Field(max_length=MAX_SHARES)] = Field(default_factory=list)
    aliases: dict[AliasName, DeclaredAlias] = Field(default_factory=dict)


class DeclaredDeployment(RequestBody):
    """A dedicated deployment. `config` as of `POST /v2/deployments`, without secrets.

    `key`: the id of the key of its tenant whose budgets count its seconds; empty: none does; left out: as it is.
    """

    description: Description = ""
    config: DeploymentConfig = Field(default_factory=dict)
    key: Annotated[str, Field(max_length=8)] | None = None


class DeclaredTenant(RequestBody):
    """A tenant. `weight`: null is the plan's."""

    plan: Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")] = "standard"
    weight: Annotated[int, Field(ge=1, le=MAX_WEIGHT)] | None = None
    state: Literal["active", "suspended"] = "active"
    limits: LimitsBody = LimitsBody()
    repositories: dict[RepositoryName, DeclaredRepository] = Field(default_factory=dict)
    deployments: dict[DeploymentName, DeclaredDeployment] = Field(default_factory=dict)


class DeclaredPrice(RequestBody):
    """Nano-dollars of a token. `cached_input_nanousd`: null is `input_nanousd`."""

    input_nanousd: Amount
    output_nanousd: Amount
    cached_input_nanousd: Amount | None = None

    @model_validator(mode="after")
    def _in_range(self) -> "DeclaredPrice":
        with _told():
            check_amounts(self.input_nanousd, self.output_nanousd, self.cached_input_nanousd)
        return self


class DeclaredCatalogue(RequestBody):
    """The declared state of a server. `pins`: adapters that stay on the device, which the command sets at the edge."""

    form: Literal[1] = 1
    tenants: dict[TenantCode, DeclaredTenant] = Field(default_factory=dict)
    prices: dict[BaseName, DeclaredPrice] = Field(default_factory=dict)
    pins: list[str] | None = None

    def objects(self, config: Config) -> Objects:
        """Return the declared objects in an order in which they can be made: an alias after its repository."""
        found: Objects = {("price", base): _price(each) for base, each in self.prices.items()}
        for code, tenant in self.tenants.items():
            found["tenant", code] = _tenant(tenant, config)
            for name, repository in tenant.repositories.items():
                found["repository", code, name] = {
                    "description": repository.description,
                    "public": repository.public,
                    "shared_with": sorted({*repository.shared_with} - {code}),
                }
                found |= {("alias", code, name, alias): each.values() for alias, each in repository.aliases.items()}
            for name, deployment in tenant.deployments.items():
                found["deployment", code, name] = {
                    "description": deployment.description,
                    "config": public_config(deployment.config),
                    **({} if deployment.key is None else {"key": deployment.key or None}),
                }
        return found

    def lists(self) -> set[Place]:
        """Return the lists that the file has, each as the common beginning of its objects' places.

        An empty list is one; a list that is left out, or null, is none.
        """
        found: set[Place] = set()
        for code, tenant in self.tenants.items():
            if "repositories" in tenant.model_fields_set:
                found.add(("repository", code))
            if "deployments" in tenant.model_fields_set:
                found.add(("deployment", code))
            for name, repository in tenant.repositories.items():
                if "aliases" in repository.model_fields_set:
                    found.add(("alias", code, name))
        return found


def public_config(config: Mapping[str, Any]) -> Values:
    """Return a deployment's configuration without secrets and without empty fields."""
    return {name: value for name, value in sorted(config.items()) if name not in SECRET_FIELDS and value is not None}


def limits_values(limits: LimitsBody) -> Values:
    """Return limits without those that limit nothing."""
    bases = {name: each.model_dump(exclude_none=True) for name, each in sorted(limits.bases.items())}
    kept = {name: each for name, each in bases.items() if each}
    return limits.model_dump(exclude_none=True, exclude={"bases"}) | ({"bases": kept} if kept else {})


def _tenant(tenant: DeclaredTenant, config: Config) -> Values:
    weight = tenant.weight if tenant.weight is not None else plan_weight(config, tenant.plan) or 1
    return {"plan": tenant.plan, "weight": weight, "state": tenant.state, "limits": limits_values(tenant.limits)}


def _price(price: DeclaredPrice) -> Values:
    cached = price.cached_input_nanousd
    return {
        "input_nanousd": price.input_nanousd,
        "output_nanousd": price.output_nanousd,
        "cached_input_nanousd": price.input_nanousd if cached is None else cached,
    }
