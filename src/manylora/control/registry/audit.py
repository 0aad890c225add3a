"""Audit rows of acts on repositories and their versions."""

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.registry.repositories import Repository
from manylora.control.tenants.audit import Actor, record


async def record_repository(
    connection: AsyncConnection,
    actor: Actor,
    verb: str,
    repository: Repository,
    version: int | None = None,
    *,
    before: object = None,
    after: object = None,
) -> None:
    """Record an act on a repository or one of its versions."""
    told = after.model_dump() if isinstance(after, BaseModel) else after
    kind, name = ("repository", repository.name) if version is None else ("version", f"{repository.name}/{version}")
    await record(connection, actor, verb, kind, name, tenant=repository.owner, before=before, after=told)
