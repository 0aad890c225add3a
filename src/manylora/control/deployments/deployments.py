"""Deployments: the shared one of each served base model, and dedicated ones of a tenant, priced by the hour.

Dedicated deployments are rows, which `process/placing.py` places; without a placer they stay `pending`. The shared
deployments follow from the settings and have no rows.
"""

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Row, and_, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.config.settings import Config
from manylora.control.bases import is_same_base, served_bases
from manylora.control.budgets.payers import set_payer
from manylora.control.deployments.memory import require_memory
from manylora.control.deployments.options import options_of
from manylora.control.deployments.placements import LiveReplica, live_replicas, note_change
from manylora.control.deployments.placer import Placer
from manylora.control.deployments.replicas import DedicatedReplica, ReplicaState
from manylora.control.deployments.status import DeploymentState
from manylora.control.deployments.stops import require_budget
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import deployments
from manylora.errors import DeploymentNotFound, InsufficientPermissions, InvalidParameter, NameTaken
from manylora.ids import TenantId
from manylora.kernels.storage_form import INT4
from manylora.models.fetch.catalog import find, nearest
from manylora.models.fetch.known_bases import KNOWN_BASES
from manylora.models.sizes import weight_bytes
from manylora.models.spec import parse_spec
from manylora.system.byte_sizes import byte_text

MAX_REPLICAS = 64
MAX_COOLDOWN_S = 7 * 86_400
DEFAULT_COOLDOWN_S = 3_600
MAX_CONFIG_BYTES = 65_536
MAX_DEPLOYMENTS = 100
ACCELERATOR_BYTES: Mapping[str, int] = {"a10_24gb_100": 24 << 30}
"""Memory of one replica by its accelerator."""
MONTH_HOURS = 730
DEFAULT_ACCELERATOR = "a10_24gb_100"
SHARED_ACCELERATOR = "shared"
PENDING_DETAIL = "recorded and priced; this server does not place dedicated deployments (placement.placer is off)"
FRESH: Mapping[str, Any] = {"detail": "", "failures": 0, "retry_ms": 0, "used_ms": 0}
"""Columns of a new deployment, and of a name that is used again."""
SECRET_FIELDS = frozenset({"hfToken"})
"""Secrets that clients send in a configuration; they are not stored."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?")
_ROOM = uuid.UUID("5b0a7c1e-0f1d-4c57-9a0f-5d1f7a8d3c11")


class DeploymentKind(StrEnum):
    SHARED = "shared"
    DEDICATED = "dedicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One deployment.

    tenant          its owner; None: all tenants share it
    hourly_nanousd  price of one replica
    config          the client's configuration, in camelCase
    detail          why it is in its state; empty where there is nothing to say
    replicas        the live replicas of a dedicated one
    key             id of the key whose budgets count its seconds; None: those of the tenant alone do
    """

    number: int
    uuid: str
    tenant: TenantId | None
    name: str
    description: str
    base: str
    kind: DeploymentKind
    state: DeploymentState
    min_replicas: int
    max_replicas: int
    cooldown_s: int
    hourly_nanousd: int
    created_ms: int
    updated_ms: int
    config: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    replicas: tuple[DedicatedReplica, ...] = ()
    key: str | None = None

    @property
    def current_replicas(self) -> int:
        """Return the number of ready replicas; a shared deployment has one."""
        return 1 if self.tenant is None else sum(each.state is ReplicaState.READY for each in self.replicas)

    @property
    def ready_ms(self) -> int | None:
        """Return the moment since which a replica is ready; None: none is."""
        if self.tenant is None:
            return self.created_ms
        return min((each.ready_ms for each in self.replicas if each.ready_ms and each.left_ms is None), default=None)

    @property
    def status_detail(self) -> str:
        """Return why it is in its state; empty where there is nothing to say."""
        return self.detail or (PENDING_DETAIL if self.state is DeploymentState.PENDING else "")

    @property
    def always_on(self) -> int:
        """Return the number of replicas in the monthly price: at least one."""
        return max(1, self.min_replicas)

    @property
    def monthly_nanousd(self) -> int:
        return MONTH_HOURS * self.hourly_nanousd * self.always_on

    @property
    def accelerator(self) -> str:
        return SHARED_ACCELERATOR if self.tenant is None else str(self.config.get("accelerator") or DEFAULT_ACCELERATOR)


Shared = Sequence[Deployment]
"""The deployments that all tenants share, one for each served base."""


def shared_deployments(config: Config, since_ms: int) -> list[Deployment]:
    """Return the deployment of each served base, under its short name."""
    return [
        Deployment(
            number=0,
            uuid=str(uuid.uuid5(_ROOM, base.name)),
            tenant=None,
            name=base.short_name,
            description=f"{base.name} and every adapter of it, by the token",
            base=base.name,
            kind=DeploymentKind.SHARED,
            state=DeploymentState.READY,
            min_replicas=1,
            max_replicas=1,
            cooldown_s=0,
            hourly_nanousd=0,
            created_ms=since_ms,
            updated_ms=since_ms,
            config={"baseModel": base.name},
        )
        for base in served_bases(config)
    ]


async def list_deployments(
    connection: AsyncConnection, tenant: TenantId, shared: Shared, kind: str | None = None
) -> list[Deployment]:
    """Return the shared deployments and the tenant's own. kind: a type of Predibase's, as `shared`; None: all."""
    found: list[Deployment] = [] if kind in ("dedicated", "private") else [*shared]
    if kind in (None, "dedicated", "private"):
        asked = select(deployments).where(_of(tenant)).order_by(deployments.c.number)
        live = await live_replicas(connection, tenant)
        found += [_deployment(row, live) for row in (await connection.execute(asked)).all()]
    return found


async def deployments_of(connection: AsyncConnection, owners: Collection[TenantId]) -> list[Deployment]:
    """Return the dedicated deployments of some tenants, in the order of their creation."""
    mine = and_(deployments.c.tenant.in_(owners), deployments.c.deleted_ms.is_(None))
    rows = (await connection.execute(select(deployments).where(mine).order_by(deployments.c.number))).all()
    live = await live_replicas(connection) if rows else {}
    return [_deployment(row, live) for row in rows]


async def every_deployment(connection: AsyncConnection, *, limit: int, after: int = 0) -> list[Deployment]:
    """Return the dedicated deployments of all tenants, in the order of their creation, from the number `after` on."""
    present = and_(deployments.c.deleted_ms.is_(None), deployments.c.number > after)
    asked = select(deployments).where(present).order_by(deployments.c.number).limit(limit)
    live = await live_replicas(connection)
    return [_deployment(row, live) for row in (await connection.execute(asked)).all()]


async def find_deployment(connection: AsyncConnection, tenant: TenantId, name: str, shared: Shared) -> Deployment:
    """Return a deployment by its name or UUID, in upper or lower case. Raise `DeploymentNotFound`."""
    wanted = name.lower()
    for each in shared:
        if wanted in (each.name, each.uuid, each.base.lower()):
            return each
    asked = select(deployments).where(_of(tenant))
    if _NAME.fullmatch(wanted):  # a UUID matches as well
        named = (deployments.c.name == wanted) | (deployments.c.uuid == wanted)
        row = (await connection.execute(asked.where(named))).first()
        if row is not None:
            return _deployment(row, await live_replicas(connection, tenant))
    raise DeploymentNotFound(f"deployment `{name.encode('unicode_escape').decode()[:80]}` was not found")


def check_deployment_name(name: str) -> None:
    """Raise `InvalidParameter` for a text that no deployment can have as its name."""
    if not _NAME.fullmatch(name):
        raise InvalidParameter(
            "`name` must be 1 to 63 lower-case letters, digits, `.` or `-`, and begin and end with a letter or digit",
            parameter="name",
        )


def check_deployment_base(config: Mapping[str, Any], base: str) -> None:  # JSON values of several types
    """Raise `InvalidParameter` for a configuration that names another base than the deployment has."""
    if "baseModel" in config and not is_same_base(str(config["baseModel"]), base):
        raise InvalidParameter("a deployment's base model cannot be changed", parameter="config.baseModel")


async def create_deployment(
    connection: AsyncConnection,
    tenant: TenantId,
    name: str,
    *,
    config: Mapping[str, Any],  # JSON values of several types
    description: str,
    shared: Shared,
    hourly_nanousd: int,
    now_ms: int,
    placer: Placer | None = None,
    key: str | None = None,
) -> Deployment:
    """Record a dedicated deployment. Raise `InvalidParameter`, also for what the placer has no room for; `NameTaken`.

    Args:    hourly_nanousd  price of an hour of one replica (`placement.hourly_nanousd`)
             placer          None: nothing is placed, and there is no memory to compare with
             key             id of the key whose budgets count its seconds; None: those of the tenant alone do
    Raises:  `QuotaExhausted` if such a budget is used up
    """
    check_deployment_name(name)
    revision = await next_revision(connection)  # it orders the makers: two at once exceed no limit and no memory
    await require_budget(connection, tenant, key, now_ms)
    own = await list_deployments(connection, tenant, shared, "dedicated")
    if any(each.name == name for each in (*shared, *own)):
        raise NameTaken(f"there is a deployment `{name}` already", parameter="name")
    if len(own) >= MAX_DEPLOYMENTS:
        raise InvalidParameter(f"a tenant has at most {MAX_DEPLOYMENTS} deployments")
    columns = deployment_columns(config, shared, hourly_nanousd)
    if placer is not None:
        columns["replica_bytes"] = await require_memory(connection, placer, columns, except_number=None)
    values = {
        **columns,
        "uuid": str(uuid.uuid4()),
        "description": description,
        "kind": DeploymentKind.DEDICATED,
        "state": DeploymentState.PENDING,
        "created_ms": now_ms,
        "updated_ms": now_ms,
        "deleted_ms": None,
        "revision": revision,
        "key": key,
        **FRESH,
    }
    mine = and_(deployments.c.tenant == tenant, deployments.c.name == name)
    if (await connection.execute(select(deployments.c.number).where(mine))).first() is None:
        await connection.execute(insert(deployments).values(tenant=tenant, name=name, **values))
    else:  # a deleted deployment has that name
        await connection.execute(update(deployments).where(mine).values(values))
    made = await find_deployment(connection, tenant, name, shared)
    await set_payer(connection, made.number, key, now_ms)
    return made


async def change_deployment(
    connection: AsyncConnection,
    tenant: TenantId,
    name: str,
    *,
    config: Mapping[str, Any] | None,  # JSON values of several types
    description: str | None,
    shared: Shared,
    hourly_nanousd: int,
    now_ms: int,
    placer: Placer | None = None,
    is_whole: bool = False,
    key: str | None = None,
) -> Deployment:
    """Change the given fields; a null in `config` counts as absent. Its price becomes that of a new deployment.

    A key that changes the configuration pays for the seconds from then on, so that none spends by another's.
    Raise as `find_deployment`, `InvalidParameter`.

    Args:  is_whole  `config` takes the place of the present one: a field that it lacks has its default; and `key`
                     pays, whatever changes
    """
    old = await _own_for_change(connection, tenant, name, shared)
    given = {key: value for key, value in (config or {}).items() if value is not None}
    check_deployment_base(given, old.base)
    whole = given if is_whole else {**old.config, **given, "baseModel": old.base}
    columns = deployment_columns(whole, shared, hourly_nanousd)
    if placer is not None:
        columns["replica_bytes"] = await require_memory(connection, placer, columns, except_number=old.number)
    elif options_of(old.base, whole) == options_of(old.base, old.config):
        del columns["replica_bytes"]  # another control plane may place it, by the memory that it has planned
    values = {**columns, "updated_ms": now_ms, "failures": 0, "retry_ms": 0}  # a change may be the remedy
    if key != old.key if is_whole else whole != old.config:
        values["key"] = key
        await set_payer(connection, old.number, key, now_ms)
    if description is not None:
        values["description"] = description
    await note_change(connection, old.number, **values)
    return await find_deployment(connection, tenant, old.name, shared)


async def delete_deployment(
    connection: AsyncConnection, tenant: TenantId, name: str, *, shared: Shared, now_ms: int
) -> None:
    """Delete a dedicated deployment. Raise `DeploymentNotFound`, `InsufficientPermissions` for the shared one."""
    old = await _own_for_change(connection, tenant, name, shared)
    await note_change(connection, old.number, deleted_ms=now_ms, state=DeploymentState.STOPPED)


def recommended_config(base: str, accelerator: str | None, shared: Shared) -> dict[str, Any]:  # JSON values
    """Return a configuration for `create_deployment`. Raise `InvalidParameter` for an unknown base."""
    given = {"baseModel": base, **({"accelerator": accelerator} if accelerator else {})}
    columns = deployment_columns(given, shared, 0)
    return {
        "baseModel": columns["base"],
        "accelerator": accelerator or DEFAULT_ACCELERATOR,
        "minReplicas": columns["min_replicas"],
        "maxReplicas": columns["max_replicas"],
        "cooldownTime": columns["cooldown_s"],
    }


def supported_bases(shared: Shared) -> list[str]:
    """Return the base models that a deployment may name, the served ones first."""
    served = [each.base for each in shared]
    known = [base.name for base in KNOWN_BASES]
    return [*served, *(name for name in known if not any(is_same_base(name, base) for base in served))]


async def _own_for_change(connection: AsyncConnection, tenant: TenantId, name: str, shared: Shared) -> Deployment:
    """Return a tenant's own deployment. No other transaction changes it, or what others take, until this one ends."""
    await next_revision(connection)
    found = await find_deployment(connection, tenant, name, shared)
    if found.tenant is None:
        raise InsufficientPermissions(f"deployment `{found.name}` is shared by all; only its operator changes it")
    return found


def deployment_columns(
    config: Mapping[str, Any], shared: Shared, hourly_nanousd: int
) -> dict[str, Any]:  # JSON values of several types
    """Return the columns of a configuration. Raise `InvalidParameter`, naming the field."""
    kept = {key: value for key, value in config.items() if key not in SECRET_FIELDS and value is not None}
    try:
        text = json.dumps(kept, allow_nan=False)  # ASCII only, so that every database stores it
    except (ValueError, RecursionError) as error:
        raise InvalidParameter("`config` has a number that is not finite, or is nested too deeply") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidParameter(f"`config` has {len(text)} bytes, over {MAX_CONFIG_BYTES}", parameter="config")
    least = _whole(kept, "minReplicas", 0, 0, MAX_REPLICAS)
    most = _whole(kept, "maxReplicas", max(1, least), 1, MAX_REPLICAS)
    if least > most:
        raise InvalidParameter(f"`minReplicas` {least} is over `maxReplicas` {most}", parameter="config.minReplicas")
    accelerator = kept.get("accelerator", DEFAULT_ACCELERATOR)
    if not isinstance(accelerator, str) or accelerator not in ACCELERATOR_BYTES:
        raise InvalidParameter(
            f"`accelerator` must be one of {', '.join(ACCELERATOR_BYTES)}. Given: {str(accelerator)[:80]!r}",
            parameter="config.accelerator",
        )
    base = _known_base(kept.get("baseModel"), shared)
    _require_room(base, accelerator)
    options_of(base, kept)
    return {
        "base": base,
        "min_replicas": least,
        "max_replicas": most,
        "cooldown_s": _whole(kept, "cooldownTime", DEFAULT_COOLDOWN_S, 0, MAX_COOLDOWN_S),
        "hourly_nanousd": hourly_nanousd,
        "config": text,
        "replica_bytes": 0,
    }


def _known_base(given: object, shared: Shared) -> str:
    for name in supported_bases(shared):
        if isinstance(given, str) and given and is_same_base(name, given):
            return name
    close = nearest(given) if isinstance(given, str) else []
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InvalidParameter(
        f"`baseModel` must be one of {', '.join(supported_bases(shared))}. Given: {str(given)[:80]!r}{hint}",
        parameter="config.baseModel",
    )


def _require_room(base: str, accelerator: str) -> None:
    """Raise `InvalidParameter` for a known base whose weights in their smallest form exceed the accelerator."""
    known, most = find(base), ACCELERATOR_BYTES[accelerator]
    if known is None:
        return
    needed = weight_bytes(parse_spec(known.config, {}), INT4)
    if needed > most:
        raise InvalidParameter(
            f"`baseModel` {base} takes {byte_text(needed)} with int4 weights, its smallest form, and one "
            f"{accelerator} has {byte_text(most)}",
            parameter="config.baseModel",
        )


def _whole(config: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = config.get(name, default)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not low <= value <= high:
        raise InvalidParameter(f"`{name}` must be a whole number, {low} to {high}", parameter=f"config.{name}")
    return value


def _of(tenant: TenantId) -> Any:  # SQLAlchemy's conditions have no simple type
    return and_(deployments.c.tenant == tenant, deployments.c.deleted_ms.is_(None))


def _deployment(row: Row[Any], live: Mapping[int, Sequence[LiveReplica]]) -> Deployment:
    return Deployment(
        number=row.number,
        uuid=row.uuid,
        tenant=TenantId(row.tenant),
        name=row.name,
        description=row.description,
        base=row.base,
        kind=DeploymentKind(row.kind),
        state=DeploymentState(row.state),
        min_replicas=row.min_replicas,
        max_replicas=row.max_replicas,
        cooldown_s=row.cooldown_s,
        hourly_nanousd=row.hourly_nanousd,
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        config=json.loads(row.config),
        detail=row.detail,
        replicas=tuple(each.replica for each in live.get(row.number, ())),
        key=row.key,
    )
