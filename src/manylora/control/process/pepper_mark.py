"""The mark of a pepper in the database: two control planes with different peppers never use one database.

Each would take every key of the other for a wrong one, and its edges the other's tenants for theirs.
"""

import hashlib

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.control import Control
from manylora.control.storage.database import place_of
from manylora.control.storage.tables import revisions
from manylora.errors import ConfigInvalid

NAME = "pepper"
_HEX_DIGITS = 15  # below 2**60, so that the column holds it


async def mark_pepper(connection: AsyncConnection, control: Control, *, takes_over: bool = False) -> None:
    """Note the mark of the control plane's pepper in a database without one.

    Args:    takes_over  whether this pepper replaces another one, whose keys are invalid from then on
    Raises:  `ConfigInvalid` for a database of another pepper
    """
    mark = int(hashlib.sha256(f"mark {control.pepper}".encode()).hexdigest()[:_HEX_DIGITS], 16)
    await connection.execute(control.database.insert_once(revisions).values(name=NAME, value=mark))
    found = (await connection.execute(select(revisions.c.value).where(revisions.c.name == NAME))).scalar_one()
    if found != mark and takes_over:
        await connection.execute(revisions.update().where(revisions.c.name == NAME).values(value=mark))
    elif found != mark:
        raise ConfigInvalid(
            f"{place_of(control.database.url)} belongs to a control plane with another pepper than the file in "
            f"control.dir {control.folder}: its keys would be invalid here. Give this control plane a database of its "
            "own (control.database_url), or copy the other's `pepper` here. If that is lost, `manylora control "
            "admin-key` makes a key with this pepper; all older keys are invalid from then on"
        )
