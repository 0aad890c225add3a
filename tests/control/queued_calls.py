"""Calls that wait for one row of a PostgreSQL database, and go on in the order in which they came."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Select, select, text

from manylora.control.storage.revisions import NAME
from manylora.control.storage.tables import revisions
from tests.control.plane import Plane
from tests.support.waiting import PATIENCE_S

WAITING = text(
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database() "
    "AND backend_type = 'client backend'"
)
REVISION = select(revisions).where(revisions.c.name == NAME)
"""The row that every change of what edges copy takes first."""


async def in_turn(plane: Plane, *calls: Callable[[], Awaitable[Any]], row: Select[Any] = REVISION) -> list[Any]:
    """Begin calls while another transaction holds a row, each once those before it wait; return their results.

    So each call has done what it does before its first lock while none of the others has changed anything.
    """
    tasks: list[asyncio.Future[Any]] = []
    async with plane.control.database.write() as connection:
        await connection.execute(row.with_for_update())
        for call in calls:
            tasks.append(asyncio.ensure_future(call()))
            await until_waiting(plane, len(tasks), tasks)
    return list(await asyncio.gather(*tasks))


async def until_waiting(plane: Plane, number: int, tasks: Sequence[asyncio.Future[Any]] = ()) -> None:
    """Return when so many transactions wait for a lock; one of those `tasks` that is done need not."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        async with plane.control.database.read() as connection:  # each sees the activity of its own begin
            waiting = int((await connection.execute(WAITING)).scalar_one())
        if waiting + sum(task.done() for task in tasks) >= number:
            return
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
