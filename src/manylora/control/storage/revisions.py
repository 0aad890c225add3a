"""Revisions: numbers of the changes that edges copy. Each such change takes the next number in its transaction."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import revisions

NAME = "edges"


async def next_revision(connection: AsyncConnection) -> int:
    """Take the next number. The row stays locked until the transaction ends, so that numbers are committed in order."""
    counted = revisions.update().where(revisions.c.name == NAME).values(value=revisions.c.value + 1)
    return int((await connection.execute(counted.returning(revisions.c.value))).scalar_one())


async def last_revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(revisions.c.value).where(revisions.c.name == NAME))).scalar_one())
