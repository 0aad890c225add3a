"""When each key was last used: gathered in memory on a request's way, kept in the database once a minute."""

from manylora.control.database import Database
from manylora.control.keys import note_uses
from manylora.ids import KeyId


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
