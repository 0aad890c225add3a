"""The number of the last change that edges have to know of: each such change takes the next one, in its transaction."""

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.tables import revisions

NAME = "edges"


async def next_revision(connection: AsyncConnection) -> int:
    """Take the next number. The row is locked until the transaction ends, so that numbers appear in their order."""
    counted = revisions.update().where(revisions.c.name == NAME).values(value=revisions.c.value + 1)
    return int((await connection.execute(counted.returning(revisions.c.value))).scalar_one())


async def last_revision(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(revisions.c.value).where(revisions.c.name == NAME))).scalar_one())
