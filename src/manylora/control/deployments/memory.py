"""The memory of the replicas of dedicated deployments: what is planned for each, and which deployment still fits."""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.deployments.options import options_of
from manylora.control.deployments.placer import Placer
from manylora.control.storage.database import Database
from manylora.control.storage.tables import deployments
from manylora.errors import InvalidParameter, ManyloraError
from manylora.system.byte_sizes import byte_text

log = logging.getLogger(__name__)

Columns = Mapping[str, Any]  # columns of several types


async def planned_bytes(placer: Placer, columns: Columns) -> int:
    """Return the memory of one replica of a deployment. Raise `InvalidParameter` for one that cannot start.

    A plan reads files of the base, so a thread makes it.
    """
    wanted = options_of(columns["base"], json.loads(columns["config"]))
    return await asyncio.to_thread(placer.needed_bytes, wanted)


async def require_memory(
    connection: AsyncConnection, placer: Placer, columns: Columns, *, except_number: int | None
) -> int:
    """Return the memory of one replica of a deployment.

    The rows of other deployments have the memory of theirs, so that no base of another tenant is read.

    Args:    columns        its row, as it should be
             except_number  number of its present row, which does not count; None: it has none
    Raises:  `InvalidParameter` with the numbers if its replicas do not fit beside those of all others
    """
    each, number = await planned_bytes(placer, columns), columns["max_replicas"]
    asked = select(func.coalesce(func.sum(deployments.c.max_replicas * deployments.c.replica_bytes), 0))
    asked = asked.where(deployments.c.deleted_ms.is_(None))
    if except_number is not None:
        asked = asked.where(deployments.c.number != except_number)
    taken = int((await connection.execute(asked)).scalar_one())
    _require_room(columns, number, each, taken, placer.total_bytes())
    return each


async def require_memory_of_all(
    connection: AsyncConnection, placer: Placer, wanted: Mapping[tuple[str, str], Columns | None]
) -> None:
    """Raise `InvalidParameter` if deployments do not fit together beside all others. It has the first that does not.

    Args:  wanted  (tenant, name) → its row, as it should be; None: it goes. Their present rows do not count
    """
    own = deployments.c
    held = select(own.tenant, own.name, (own.max_replicas * own.replica_bytes).label("bytes"))
    rows = (await connection.execute(held.where(own.deleted_ms.is_(None)))).all()
    taken = sum(int(row.bytes) for row in rows if (row.tenant, row.name) not in wanted)
    for (tenant, name), columns in wanted.items():
        if columns is None:
            continue
        try:
            each, number = await planned_bytes(placer, columns), columns["max_replicas"]
            _require_room(columns, number, each, taken, placer.total_bytes())
        except InvalidParameter as error:
            told = f"deployment `{tenant}/{name}`: {error.message}"
            raise InvalidParameter(told, parameter=error.parameter) from error
        taken += number * each


def _require_room(columns: Columns, number: int, each: int, taken: int, total: int) -> None:
    if number * each + taken > total:
        raise InvalidParameter(
            f"`maxReplicas` {number} of {columns['base']} take {number} × {byte_text(each)} by `manylora plan`; "
            f"{byte_text(total)} are for all replicas, and other deployments may take {byte_text(taken)} of them",
            parameter="config.maxReplicas",
        )


async def plan_all(database: Database, placer: Placer, *, only_unknown: bool = False) -> None:
    """Store the memory of a replica of each deployment, as the settings and the files of the bases are now.

    `only_unknown` leaves out those whose memory is stored: a control plane without a placer makes rows without it.

    A deployment whose replicas cannot be planned gets 0: it has no replica, and its own page says why. Raise
    `ControlUnavailable`.
    """
    async with database.read() as connection:
        rows = (await connection.execute(select(deployments).where(deployments.c.deleted_ms.is_(None)))).mappings()
        found = [dict(row) for row in rows if not only_unknown or not row["replica_bytes"]]
    for row in found:
        try:
            needed = await planned_bytes(placer, row)
        except ManyloraError as error:
            log.warning("deployments.not_planned deployment=%s/%s error=%s", row["tenant"], row["name"], error.message)
            needed = 0
        if needed != row["replica_bytes"]:
            async with database.write() as connection:
                same = (deployments.c.number == row["number"]) & (deployments.c.config == row["config"])
                await connection.execute(update(deployments).where(same).values(replica_bytes=needed))
