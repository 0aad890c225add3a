"""One database, SQLite or PostgreSQL: opening, migrating, and transactions that read or write."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Dialect, Insert, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import Table

from manylora import __version__
from manylora.errors import NEWER_REMEDY, ConfigInvalid, ControlUnavailable, DataTooNew

FILE_NAME = "control.db"
BUSY_WAIT_S = 10
_SQLITE_REMEDIES = {
    "locked": "another program holds it: end that, or wait until it is done",
    "readonly": "give this user the right to write it and its folder, or let control.dir name another folder",
    "unable to open": "see that its folder is there and can be written, or let control.dir name another",
    "disk is full": "make room there",
    "disk I/O error": "look whether the disk is whole and has room",
    "not a database": "move it away and restore a backup with `manylora control restore`",
    "malformed": "move it away and restore a backup with `manylora control restore`",
}
"""What to do, by a part of SQLite's own words."""
MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """Transactions on one database. SQLite has one writer at a time: here a lock, so that nobody waits in vain."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._engine: AsyncEngine = create_async_engine(url)
        # PostgreSQL's default shows each statement another state.
        one_state = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self._engine.execution_options(**one_state)  # of the same pool
        self._writing = asyncio.Lock()  # one write transaction of this process at a time, on SQLite
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one state, as of its first statement, and changes none.

        Raises `ControlUnavailable` if the database cannot be reached.
        """
        async with _told(), self._reading.connect() as connection:
            if self.is_sqlite:
                await connection.exec_driver_sql("BEGIN")  # the driver itself begins at the first change only
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at its end, and undone whole by any exception."""
        async with _told():
            if not self.is_sqlite:
                async with self._engine.begin() as connection:
                    yield connection
                return
            async with self._writing, self._engine.connect() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    await connection.rollback()
                    raise
                await connection.commit()

    def insert_once(self, table: Table) -> Insert:
        """An INSERT that passes over rows whose unique columns are taken."""
        if self.is_sqlite:
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    async def close(self) -> None:
        await self._engine.dispose()


def database_url(text: str, folder: Path) -> URL:
    """The database that a setting names; empty is the SQLite file in `folder`. Raises `ConfigInvalid`."""
    if not text:
        return URL.create("sqlite+aiosqlite", database=str(folder / FILE_NAME))
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        raise ConfigInvalid("control.database_url is not the URL of a database (its text is not shown)") from None
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    if backend not in drivers:
        raise ConfigInvalid(f"control.database_url must be of SQLite or PostgreSQL. Given: {backend}")
    return url.set(drivername=drivers[backend])


def migrate(url: URL, revision: str = "head") -> None:
    """Bring a database to a revision of its tables, from nothing or from any older one. Blocks; call it before serving.

    Raises `ControlUnavailable` if the database cannot be reached, `DataTooNew` if a newer manylora has written it.
    """
    configuration = _alembic()
    with _connected(url) as connection:
        _hold_migrations(connection)
        _refuse_newer(connection, place_of(url))
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, revision)


def require_known_revision(url: URL, called: str) -> None:
    """See that this program knows the tables of a database, and change nothing. Blocks.

    Args:    called  what the message calls the database
    Raises:  as `migrate`
    """
    with _connected(url) as connection:
        _refuse_newer(connection, called)


def place_of(url: URL) -> str:
    """A database as messages name it: SQLite's file, or name and host without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"the database {url.database}"
    host = url.host or url.query.get("host") or "this machine"
    return f"the database {url.database} at {host}"


def _alembic() -> AlembicConfig:
    configuration = AlembicConfig()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return configuration


@contextmanager
def _connected(url: URL) -> Iterator[Connection]:
    """A connection with a transaction. Raises `ControlUnavailable`."""
    engine = create_engine(url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url)
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise _cannot_open(error, url) from error
    finally:
        engine.dispose()


def _refuse_newer(connection: Connection, called: str) -> None:
    scripts = ScriptDirectory.from_config(_alembic())
    known = {script.revision for script in scripts.walk_revisions()}
    found = set(MigrationContext.configure(connection).get_current_heads())
    if unknown := sorted(found - known):
        raise DataTooNew(
            f"{called} has version {', '.join(unknown)}; manylora {__version__} knows versions up to "
            f"{', '.join(scripts.get_heads())}. A newer manylora, or another program, has written it: {NEWER_REMEDY}"
        )


def _hold_migrations(connection: Connection) -> None:
    """Let one process migrate at a time, and wholly or not at all: several may start at once, and any may be killed."""
    dialect: Dialect = connection.dialect
    if dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins at the first change of rows, not of tables
    else:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7205759403792794)")


def _set_up_sqlite(connection: object, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]  # the driver's own connection, which has no type here
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={1000 * BUSY_WAIT_S}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """The database's own failures as ours; what the caller raised goes through."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _unavailable(error) from error


def _cannot_open(error: SQLAlchemyError, url: URL) -> ControlUnavailable:
    """The failure of a start, told to the operator: with SQLite's file, its cause and the remedy."""
    if url.get_backend_name() != "sqlite" or not isinstance(error, DBAPIError):
        return _unavailable(error)
    cause = str(error.orig)
    remedy = next((remedy for part, remedy in _SQLITE_REMEDIES.items() if part in cause), "look at the file")
    return ControlUnavailable(f"{place_of(url)} cannot be used: {cause}; {remedy}")


def _unavailable(error: SQLAlchemyError) -> ControlUnavailable:
    return ControlUnavailable(f"the control plane's database failed ({type(error).__name__})")
