"""One database, SQLite or PostgreSQL: opening, migrating, and transactions that read or write."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Dialect, Engine, Insert, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.schema import Table

from manylora import __version__
from manylora.control.storage.concurrent_indexes import make_indexes
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
"""Remedies by a part of SQLite's error message."""
CONNECT_WAIT_S = 10
"""Limit for PostgreSQL, whose driver waits for minutes; `connect_timeout` in the URL overrides it."""
MIGRATIONS = Path(__file__).parent / "migrations"
FAILURES = (SQLAlchemyError, sqlite3.Error)
"""Errors of a database; the second is raised by statements on each new connection."""
MISSING_DRIVER = (
    "control.database_url names a PostgreSQL database, whose driver is not installed: pip install 'manylora[postgres]'"
)

log = logging.getLogger(__name__)


class Database:
    """Transactions on one database. A lock orders this process's writers of SQLite, which allows one at a time."""

    def __init__(self, url: URL) -> None:
        """Create the engine. Raise `ConfigInvalid` without the driver of PostgreSQL."""
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._engine: AsyncEngine = _async_engine(url)
        # By default each statement of PostgreSQL sees another state.
        one_state = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reading = self._engine.execution_options(**one_state)  # of the same pool
        self._writing = asyncio.Lock()  # one write transaction of this process at a time, on SQLite
        if self.is_sqlite:
            event.listen(self._engine.sync_engine, "connect", _set_up_sqlite)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Open a read-only transaction that sees the state as of its first statement.

        Raises `ControlUnavailable` if the database cannot be reached.
        """
        async with _told(self.url), self._reading.connect() as connection:
            if self.is_sqlite:
                await connection.exec_driver_sql("BEGIN")  # the driver itself begins at the first change only
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction that is committed at its end, and rolled back by any exception."""
        async with _told(self.url):
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
        """Return an INSERT that skips rows whose unique columns are taken."""
        if self.is_sqlite:
            return sqlite.insert(table).on_conflict_do_nothing()
        return postgresql.insert(table).on_conflict_do_nothing()

    async def close(self) -> None:
        await self._engine.dispose()


def database_url(text: str, folder: Path) -> URL:
    """Return the URL of a setting; empty is the SQLite file in `folder`. Raise `ConfigInvalid`."""
    if not text:
        return URL.create("sqlite+aiosqlite", database=str(folder / FILE_NAME))
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):  # ValueError: the port is no number
        raise ConfigInvalid("control.database_url is not the URL of a database (its text is not shown)") from None
    drivers = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
    if backend not in drivers:
        raise ConfigInvalid(f"control.database_url must be of SQLite or PostgreSQL. Given: {backend}")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigInvalid("control.database_url must name a file: a database in memory ends with each connection")
    if not _is_host(url.host or ""):
        raise ConfigInvalid(
            "control.database_url has no name of a host after its user and password (its text is not shown); in a "
            "password @ is written %40"
        )
    return url.set(drivername=drivers[backend])


def migrate(url: URL, revision: str = "head") -> None:
    """Bring a new or older database to a revision of the tables. Blocks; call it before serving.

    Raises `ControlUnavailable` if the database cannot be reached, `DataTooNew` if a newer release has written it,
    `ConfigInvalid` without its driver.
    """
    configuration = _alembic()
    with _connected(url) as connection:
        _hold_migrations(connection)
        _refuse_newer(connection, place_of(url))
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, revision)
        is_postgres = connection.dialect.name != "sqlite"
    if is_postgres and revision == "head":
        with _engine_of(url) as engine:
            make_indexes(engine)


def require_known_revision(url: URL, called: str) -> None:
    """Require that this release knows the tables of a database; change nothing. Blocks.

    Args:    called  name of the database in messages
    Raises:  as `migrate`
    """
    with _connected(url) as connection:
        _refuse_newer(connection, called)


def place_of(url: URL) -> str:
    """Return a database's name for messages: SQLite's file, or name and host without user and password."""
    if url.get_backend_name() == "sqlite":
        return f"the database {url.database}"
    host = url.host or url.query.get("host") or "this machine"
    return f"the database {url.database} at {host}{f':{url.port}' if url.port else ''}"


def driver_cause(error: Exception, url: URL) -> str:
    """Return the driver's message of an error, in one line, without the password and without values of rows.

    PostgreSQL describes a failed connection in several lines. Of any other error only the first line is kept: the
    others quote the statement and its values.
    """
    said = error.orig if isinstance(error, DBAPIError) else error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()] or [type(error).__name__]
    is_connecting = isinstance(error, OperationalError)
    text = " ".join(("; ".join(lines) if is_connecting else lines[0]).split())
    for secret in filter(None, (url.password, url.query.get("password"))):
        text = text.replace(str(secret), "***")
    return text


def _alembic() -> AlembicConfig:
    configuration = AlembicConfig()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return configuration


@contextmanager
def _connected(url: URL) -> Iterator[Connection]:
    """Open a connection with a transaction. Raise as `_engine_of`."""
    with _engine_of(url) as engine, engine.begin() as connection:
        yield connection


@contextmanager
def _engine_of(url: URL) -> Iterator[Engine]:
    """Yield an engine of its own. Raise `ControlUnavailable`, naming the database and the cause."""
    engine = _engine(url)
    try:
        yield engine
    except FAILURES as error:
        raise ControlUnavailable(
            f"{place_of(url)} cannot be used: {_remedied(driver_cause(error, url), url)}"
        ) from error
    finally:
        engine.dispose()


def _remedied(cause: str, url: URL) -> str:
    """Return the cause and, for SQLite, a remedy."""
    if url.get_backend_name() != "sqlite":
        return cause
    remedy = next((remedy for part, remedy in _SQLITE_REMEDIES.items() if part in cause), "look at the file")
    return f"{cause}; {remedy}"


def _engine(url: URL) -> Engine:
    try:
        named = url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url
        return create_engine(named, connect_args=_connect_args(url), hide_parameters=True)
    except ImportError:
        raise ConfigInvalid(MISSING_DRIVER) from None


def _async_engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(url, connect_args=_connect_args(url), hide_parameters=True)
    except ImportError:
        raise ConfigInvalid(MISSING_DRIVER) from None


def _connect_args(url: URL) -> dict[str, int]:
    is_asked = url.get_backend_name() == "sqlite" or "connect_timeout" in url.query
    return {} if is_asked else {"connect_timeout": CONNECT_WAIT_S}


def _is_host(text: str) -> bool:
    """Return whether a text can be a host name; part of a password behind an unescaped @ is none."""
    try:
        text.encode("idna")
    except UnicodeError:
        return False
    return "@" not in text


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
    """Lock the migration: several processes may start at once. Its transaction undoes a killed one."""
    dialect: Dialect = connection.dialect
    if dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins at the first change of rows, not of tables
    else:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7205759403792794)")


def _set_up_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    pragmas = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={1000 * BUSY_WAIT_S}")
    cursor = connection.cursor()
    try:
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except sqlite3.Error:
        connection.close()  # the pool does not own it yet, so its thread would never end
        raise


@asynccontextmanager
async def _told(url: URL) -> AsyncIterator[None]:
    """Raise `ControlUnavailable` in place of errors of the database; other exceptions pass.

    The log names the database and the cause. The error does not, since customers read it.
    """
    try:
        yield
    except FAILURES as error:
        log.warning("%s failed: %s", place_of(url), driver_cause(error, url))
        raise ControlUnavailable(f"the control plane's database failed ({_kind(error)})") from error


_DISK_FAULTS = {
    "SQLITE_FULL": "its disk is full; nothing is changed until there is room",
    "SQLITE_IOERR": "its disk cannot be read or written",
    "SQLITE_READONLY": "its disk or file is read-only",
    "SQLITE_CANTOPEN": "its file cannot be opened",
}


def _kind(error: Exception) -> str:
    """Return the part of an error that customers may know: a fault of SQLite's disk, else the name of its class."""
    name = str(getattr(getattr(error, "orig", None), "sqlite_errorname", ""))
    return next((what for fault, what in _DISK_FAULTS.items() if name.startswith(fault)), type(error).__name__)
