"""Last uses of keys: collected in memory by requests, stored in the database once a minute."""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.database import Database
from manylora.control.storage.tables import keys
from manylora.ids import KeyId

USE_GRAIN_MS = 60_000


class KeyUses:
    """Last uses that are not in the database yet. An object belongs to one event loop."""

    def __init__(self) -> None:
        self._last: dict[KeyId, int] = {}

    def note(self, key: KeyId, at_ms: int) -> None:
        """Note a use of a valid key; other keys would grow the table without bound."""
        self._last[key] = max(at_ms, self._last.get(key, at_ms))

    async def keep(self, database: Database) -> None:
        """Store new uses. Raise `ControlUnavailable`; the next call then stores them."""
        if not self._last:
            return
        taken, self._last = self._last, {}
        try:
            async with database.write() as connection:
                await note_uses(connection, taken.items())
        except BaseException:
            for key, at_ms in taken.items():
                self.note(key, at_ms)
            raise


async def hold_keys(connection: AsyncConnection, condition: ColumnElement[bool]) -> None:
    """Lock the rows of keys in the order of `note_uses`: an UPDATE of several locks them in any order."""
    if connection.dialect.name != "sqlite":
        asked = select(keys.c.id).where(condition).order_by(keys.c.id.collate("C"))
        await connection.execute(asked.with_for_update(key_share=True))


async def note_uses(connection: AsyncConnection, uses: Iterable[tuple[str, int]]) -> None:
    """Store the last uses of keys, (id, moment in milliseconds), each at most once in `USE_GRAIN_MS`.

    An earlier use and an unknown key change nothing. Edges do not copy uses, so this takes no revision.
    """
    for key_id, at_ms in sorted(uses):  # in one order, so that no two transactions wait for each other
        is_later = or_(keys.c.last_used_ms.is_(None), keys.c.last_used_ms <= at_ms - USE_GRAIN_MS)
        await connection.execute(update(keys).where(keys.c.id == key_id, is_later).values(last_used_ms=at_ms))
