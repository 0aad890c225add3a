"""Transactions and migrations, on both engines."""

import asyncio
import socket
import socketserver
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, insert, inspect, select

from manylora.config.settings import load_config
from manylora.control.process.opening import open_control
from manylora.control.storage.database import Database, database_url, migrate
from manylora.control.storage.revisions import next_revision
from manylora.control.storage.tables import metadata, revisions
from manylora.errors import ConfigInvalid, ControlUnavailable
from tests.control.conftest import Scenario

InDatabase = Callable[[Scenario], None]
PASSWORD = "s3cret-word"
ROW = {"name": "other", "value": 1}
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104
"""What a client asks before its session starts; the answer N is no."""


def sync_engine(url: URL):  # type: ignore[no-untyped-def]  # the name of the type says nothing more
    return create_engine(url.set(drivername="sqlite") if url.get_backend_name() == "sqlite" else url)


def test_migrations_lead_from_nothing_to_the_tables_of_the_code(empty_url: URL) -> None:
    migrate(empty_url)
    migrate(empty_url)
    engine = sync_engine(empty_url)
    with engine.connect() as connection:
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_write_is_committed_whole_or_not_at_all(in_database: InDatabase) -> None:
    async def scenario(database: Database) -> None:
        async def fail() -> None:
            async with database.write() as connection:
                await connection.execute(insert(revisions).values(ROW))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        async with database.read() as connection:
            assert len((await connection.execute(select(revisions))).all()) == 1
        async with database.write() as connection:
            await connection.execute(insert(revisions).values(ROW))
        async with database.read() as connection:
            assert ("other", 1) in (await connection.execute(select(revisions))).all()

    in_database(scenario)


def test_a_reader_sees_one_state(in_database: InDatabase) -> None:
    async def scenario(database: Database) -> None:
        if not database.is_sqlite:
            return  # PostgreSQL reads what is committed, statement by statement; each of our questions is one statement
        async with database.read() as reader:
            before = (await reader.execute(select(revisions))).all()
            async with database.write() as connection:
                await connection.execute(insert(revisions).values(ROW))
            assert (await reader.execute(select(revisions))).all() == before

    in_database(scenario)


def test_twenty_writers_lose_nothing(in_database: InDatabase) -> None:
    async def scenario(database: Database) -> None:
        async with database.write() as connection:
            first = await next_revision(connection)
        taken: list[int] = []

        async def take() -> None:
            async with database.write() as connection:
                taken.append(await next_revision(connection))

        await asyncio.gather(*(take() for _ in range(20)))
        assert sorted(taken) == list(range(first + 1, first + 21))

    in_database(scenario)


def test_what_is_there_is_passed_over(in_database: InDatabase) -> None:
    async def scenario(database: Database) -> None:
        for _ in range(2):
            async with database.write() as connection:
                await connection.execute(database.insert_once(revisions).values(ROW))
        async with database.read() as connection:
            assert len((await connection.execute(select(revisions))).all()) == 2

    in_database(scenario)


class Refusing(socketserver.BaseRequestHandler):
    """A PostgreSQL server that answers each start of a session with one error."""

    def handle(self) -> None:
        stream = self.request.makefile("rwb")
        while len(head := stream.read(8)) == 8:
            length, code = struct.unpack("!ii", head)
            if code in (SSL_REQUEST, GSS_REQUEST):
                stream.write(b"N")
                stream.flush()
                continue
            stream.read(length - 8)
            fields = b"SFATAL\0" + f"C{self.server.state}\0M{self.server.said}\0".encode() + b"\0"  # type: ignore[attr-defined]  # set by the test
            stream.write(b"E" + struct.pack("!i", len(fields) + 4) + fields)
            stream.flush()
            return


@contextmanager
def refusing(state: str, said: str) -> Iterator[int]:
    """Yields the port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        server.state, server.said = state, said  # type: ignore[attr-defined]  # read by the handler
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("postgresql://bob:s3cret-word@127.0.0.1:1/books", "connection refused"),
        ("postgresql://bob:s3cret-word@no-host.invalid:5433/books", "no-host.invalid"),
        ("postgresql://bob@127.0.0.1:1/books?password=s3cret-word", "connection refused"),
    ],
)
def test_a_database_that_is_not_there_is_named_with_the_cause(url: str, cause: str, tmp_path: Path) -> None:
    with pytest.raises(ControlUnavailable) as caught:
        migrate(database_url(url, tmp_path))
    told = caught.value.message
    assert told.startswith(f"the database books at {url.partition('@')[2].partition('/')[0]} cannot be used: ")
    assert cause in told.lower()
    assert "\n" not in told
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("28P01", 'password authentication failed for user "bob"'),
        ("3D000", 'database "books" does not exist'),
        ("53300", "sorry, too many clients already"),
        ("", "server does not support SSL, but SSL was required"),
    ],
)
def test_a_server_that_refuses_is_named_with_what_it_said(state: str, said: str, tmp_path: Path) -> None:
    mode = "prefer" if state else "require"
    with refusing(state, said) as port, pytest.raises(ControlUnavailable) as caught:
        migrate(database_url(f"postgresql://bob:{PASSWORD}@127.0.0.1:{port}/books?sslmode={mode}", tmp_path))
    assert f"the database books at 127.0.0.1:{port} cannot be used: " in caught.value.message
    assert said in caught.value.message
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ControlUnavailable, match=f"127.0.0.1:{port} cannot be used: .*timeout"):
            migrate(database_url(f"postgresql://bob@127.0.0.1:{port}/books?connect_timeout=1", tmp_path))


def test_a_failure_while_serving_is_logged_with_its_place_and_told_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> str:
        database = Database(database_url("postgresql://bob:s3cret-word@127.0.0.1:1/books", tmp_path))
        with pytest.raises(ControlUnavailable) as caught:
            async with database.read():
                pass
        await database.close()
        return caught.value.message

    told = asyncio.run(scenario())
    assert "127.0.0.1" not in told
    assert "the database books at 127.0.0.1:1 failed: " in caplog.text
    assert "refused" in caplog.text
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_c and the rest of it"])
def test_without_the_driver_of_postgresql_one_line_says_what_to_install(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("no pq wrapper available")

    if missing == "psycopg":
        monkeypatch.setitem(sys.modules, "psycopg", None)
    else:
        monkeypatch.setattr("manylora.control.storage.database.create_engine", fail)
        monkeypatch.setattr("manylora.control.storage.database.create_async_engine", fail)
    url = database_url("postgresql://bob:s3cret-word@127.0.0.1:1/books", tmp_path)
    for use in (migrate, Database):
        with pytest.raises(ConfigInvalid, match=r"pip install 'manylora\[postgres\]'") as caught:
            use(url)
        assert PASSWORD not in caught.value.message


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, None])
def test_a_file_that_is_no_database_is_named_with_the_cause(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "books.db"
    file.mkdir() if content is None else file.write_bytes(content)
    url = database_url(f"sqlite:///{file}", tmp_path)
    cause = "unable to open database file" if content is None else "file is not a database"
    with pytest.raises(ControlUnavailable, match=f"^the database {file} cannot be used: {cause}; "):
        migrate(url)

    async def read() -> None:
        database = Database(url)
        with pytest.raises(ControlUnavailable, match="the control plane's database failed"):
            async with database.read():
                pass
        await database.close()

    if content is not None:  # the driver's thread of a connection that never opened outlives the loop
        asyncio.run(read())


def test_a_place_for_the_database_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    place = f"{tmp_path}/none/books.db"
    settings = {"control.dir": str(tmp_path / "control"), "control.database_url": f"sqlite:///{place}"}
    with pytest.raises(ConfigInvalid, match=f"the database {place} cannot be used: No such file"):
        open_control(load_config(flags=settings, environ={}), is_key_needed=True)


@pytest.mark.parametrize(
    "text",
    [
        "mysql://a/b",
        "no url",
        "postgresql:/",
        "postgresql://bob:12@34:books@127.0.0.1/books",
        "postgresql://bob:s3cret@word@127.0.0.1/books",
        "postgresql://bob:s3cret-word@a..b/books",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_wrong_url_is_refused_without_being_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"control\.database_url") as caught:
        database_url(text, tmp_path)
    assert text not in caught.value.message
    assert "word" not in "".join(traceback.format_exception(caught.value)).replace("a password", "").replace(
        "and password", ""
    )
