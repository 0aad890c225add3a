"""When each key was last used: gathered in memory on a request's way, kept in the database once a minute."""

from collections.abc import Iterable

from sqlalchemy import or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from manylora.control.storage.database import Database
from manylora.control.storage.tables import keys
from manylora.ids import KeyId

USE_GRAIN_MS = 60_000


class KeyUses:
    """The last uses that are not in the database yet. It belongs to one event loop."""

    def __init__(self) -> None:
        self._last: dict[KeyId, int] = {}

    def note(self, key: KeyId, at_ms: int) -> None:
        """Only of keys that are valid, so that there are no more of them than keys."""
        self._last[key] = max(at_ms, self._last.get(key, at_ms))

    async def keep(self, database: Database) -> None:
        """Write what is new. Raises `ControlUnavailable`, and then keeps it for the next time."""
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


async def note_uses(connection: AsyncConnection, uses: Iterable[tuple[str, int]]) -> None:
    """Keep the last uses of keys, (id, moment in milliseconds), each at most once in `USE_GRAIN_MS`.

    An earlier one, or an unknown key, changes nothing. Edges need not know of it, so no revision is taken.
    """
    for key_id, at_ms in sorted(uses):  # in one order, so that no two transactions wait for each other
        is_later = or_(keys.c.last_used_ms.is_(None), keys.c.last_used_ms <= at_ms - USE_GRAIN_MS)
        await connection.execute(update(keys).where(keys.c.id == key_id, is_later).values(last_used_ms=at_ms))
