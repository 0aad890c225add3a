"""Transactions and migrations, on both engines."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, create_engine, insert, inspect, select

from manylora.control.database import Database, database_url, migrate
from manylora.control.revisions import next_revision
from manylora.control.tables import metadata, revisions
from manylora.errors import ConfigInvalid, ControlUnavailable
from tests.control.conftest import Scenario

InDatabase = Callable[[Scenario], None]
ROW = {"name": "other", "value": 1}


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


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    url = database_url("postgresql://nobody@127.0.0.1:1/nothing", tmp_path)
    with pytest.raises(ControlUnavailable):
        migrate(url)


@pytest.mark.parametrize("text", ["mysql://a/b", "no url", "postgresql:/"])
def test_a_wrong_url_is_refused_without_being_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"control\.database_url") as caught:
        database_url(text, tmp_path)
    assert text not in caught.value.message
