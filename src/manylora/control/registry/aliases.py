"""Aliases: names for versions of a repository, set by its owner, and the rules by which they share requests."""

import re
from collections.abc import Collection, Container, Iterable, Mapping

from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import Repository, own_for_change
from manylora.control.rollouts.rules import columns_of, history_of, new_rule, restorable
from manylora.control.storage.tables import aliases
from manylora.control.storage.texts import shown
from manylora.errors import InvalidParameter, NameTaken, ResourceNotFound
from manylora.ids import TenantId
from manylora.rollouts.rollout import POINTS, Rollout, plain, without

MAX_ALIASES = 100
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._\-]{0,63}")


async def set_alias(
    connection: AsyncConnection,
    tenant: TenantId,
    reference: str,
    name: str,
    version: int,
    base_names: Container[str] = (),
) -> None:
    """Let an alias mean one version. The change is atomic for requests. Raise as `set_rule`."""
    await set_rule(connection, tenant, reference, name, {version: POINTS}, base_names=base_names)


def check_alias(
    repository: Repository, name: str, base_names: Container[str] = (), *, versions: Collection[int] = (0,)
) -> None:
    """Raise `InvalidParameter` for an invalid name and for too many aliases, `NameTaken` for the base model's names.

    Args:  versions  those that the alias is to get: `InvalidParameter` for a guarded alias, unless there are none
    """
    if versions and name in repository.guards:
        raise InvalidParameter(
            f"alias `{repository.name}/{name}` is guarded by the repository's evaluation: a version gets it by a "
            "promotion (`manylora rollout promote`)",
            parameter="alias",
        )
    check_alias_name(name)
    if f"{repository.name}/{name}".lower() in base_names:
        raise NameTaken(f"`{repository.name}/{name}` is a name of the served base model", parameter="alias")
    if name not in repository.aliases and len(repository.aliases) >= MAX_ALIASES:
        raise InvalidParameter(f"a repository has at most {MAX_ALIASES} aliases", parameter="alias")


def check_alias_name(name: str) -> None:
    """Raise `InvalidParameter` for a text that no alias can have as its name."""
    if not _ALIAS.fullmatch(name) or ".." in name:
        raise InvalidParameter(
            f"an alias must be 1 to 64 letters, digits, `.`, `_` or `-`, and begin with a letter. Given: {shown(name)}",
            parameter="alias",
        )


def require_unguarded(repository: Repository, names: Iterable[str], deleted: str) -> None:
    """Raise `InvalidParameter` if a deletion would end a guarded alias: its next version would be compared with none.

    Args:  names    aliases that the deletion ends
           deleted  the deleted object, for the message
    """
    if guarded := sorted(set(names) & set(repository.guards)):
        raise InvalidParameter(
            f"{deleted} cannot be deleted: alias `{repository.name}/{guarded[0]}` is guarded by the repository's "
            "evaluation. Promote another version, or remove the evaluation "
            "(`manylora rollout questions --remove`)",
            parameter="alias",
        )


async def set_rule(
    connection: AsyncConnection,
    tenant: TenantId,
    reference: str,
    name: str,
    weights: Mapping[int, int],
    *,
    sticky: str | None = None,
    shadow: int | None = None,
    base_names: Container[str] = (),
) -> Rollout:
    """Let an alias mean several versions, each with a percent of the requests, and return the rule.

    Raises `ResourceNotFound` unless every version is ready, and as `check_alias` and `rules.new_rule`.
    """
    repository = await own_for_change(connection, tenant, reference)
    old = repository.rollouts.get(name)
    check_alias(repository, name, base_names, versions=set(weights) - set(old.shares if old is not None else ()))
    rule = new_rule(old, weights, sticky, shadow)
    _require_usable(repository, rule)
    await put_rule(connection, repository, name, rule)
    return rule


async def roll_back(connection: AsyncConnection, tenant: TenantId, reference: str, name: str) -> Rollout:
    """Restore the rule of an alias before its last change, points included; return it. It has no later rule then.

    Raises `ResourceNotFound` for an unknown alias, one without an earlier rule, and a rule with versions not ready.
    """
    repository = await own_for_change(connection, tenant, reference)
    rules = await rules_of(connection, repository, name)
    if len(rules) == 1:
        raise ResourceNotFound(f"alias `{repository.name}/{name}` has no earlier rule")
    *earlier, restored, _ = rules
    _require_usable(repository, restored)
    await connection.execute(update(aliases).where(_mine(repository, name)).values(columns_of(restored, earlier)))
    return restored


async def rules_of(connection: AsyncConnection, repository: Repository, name: str) -> list[Rollout]:
    """Return the earlier rules of an alias and its present one, which is the last. Raise `ResourceNotFound`.

    A rule with a share of a deleted version is none to return to. One whose shadow is deleted has no shadow.
    """
    if name not in repository.rollouts:
        raise ResourceNotFound(f"repository `{repository.name}` has no alias `{shown(name)}`")
    row = (await connection.execute(select(aliases).where(_mine(repository, name)))).one()
    return restorable([*history_of(row), repository.rollouts[name]], {each.version for each in repository.versions})


async def put_alias(connection: AsyncConnection, repository: Repository, name: str, version: int) -> None:
    """Let a checked alias mean one version. `repository`: as `own_for_change` returned it in the same transaction."""
    await put_rule(connection, repository, name, plain(version))


async def put_rule(connection: AsyncConnection, repository: Repository, name: str, rule: Rollout) -> None:
    """Give a checked alias a rule, and keep the one before for a roll-back. `repository`: as with `put_alias`."""
    if name not in repository.aliases:
        values = {"repository": repository.number, "name": name, **columns_of(rule, [])}
        await connection.execute(insert(aliases).values(values))
        return
    rules = await rules_of(connection, repository, name)
    if rules[-1] != rule:
        await connection.execute(update(aliases).where(_mine(repository, name)).values(columns_of(rule, rules)))


async def drop_version(
    connection: AsyncConnection, repository: Repository, version: int, *, passes_guards: bool = False
) -> None:
    """Take a version that is deleted out of every rule. An alias of it alone goes.

    Raises as `require_unguarded`, unless `passes_guards`.
    """
    ended = [name for name, rule in repository.rollouts.items() if {*rule.shares} == {version}]
    if not passes_guards:
        require_unguarded(repository, ended, f"version {version}")
    for name, rule in repository.rollouts.items():
        if version not in rule.shares and version != rule.shadow:
            continue
        left = without(rule, version)
        if left is None:
            await connection.execute(delete(aliases).where(_mine(repository, name)))
        else:
            earlier = (await rules_of(connection, repository, name))[:-1]
            await connection.execute(update(aliases).where(_mine(repository, name)).values(columns_of(left, earlier)))


def _require_usable(repository: Repository, rule: Rollout) -> None:
    named = [*rule.shares, *([] if rule.shadow is None else [rule.shadow])]
    for version in named:
        if not repository.find(str(version)).is_usable:
            raise ResourceNotFound(f"version {version} of `{repository.name}` is not ready, so no alias can mean it")


def _mine(repository: Repository, name: str) -> ColumnElement[bool]:
    return and_(aliases.c.repository == repository.number, aliases.c.name == name)


async def remove_alias(connection: AsyncConnection, tenant: TenantId, reference: str, name: str) -> None:
    """Remove an alias. Raise `ResourceNotFound`, and as `require_unguarded`."""
    repository = await own_for_change(connection, tenant, reference)
    if name not in repository.aliases:
        raise ResourceNotFound(f"repository `{repository.name}` has no alias `{shown(name)}`")
    require_unguarded(repository, [name], f"alias `{name}`")
    await connection.execute(delete(aliases).where(_mine(repository, name)))
