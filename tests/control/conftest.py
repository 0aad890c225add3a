"""Databases for the tests of the control plane: each test runs on SQLite and on PostgreSQL."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.control.database import Database, database_url, migrate
from tests.conftest import missing
from tests.control.postgres_server import PostgresServer, find_postgres, postgres_server

Scenario = Callable[[Database], Coroutine[Any, Any, None]]


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run."""
    binaries = find_postgres()
    if binaries is None:
        missing("no PostgreSQL server here: apt-get install postgresql")
        return
    with postgres_server(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """A database without tables, on either engine."""
    if request.param == "sqlite":
        return database_url("", tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture
def url(empty_url: URL) -> URL:
    """A database with today's tables."""
    migrate(empty_url)
    return empty_url


@pytest.fixture
def in_database(url: URL) -> Callable[[Scenario], None]:
    """Run a coroutine function with an open, empty database."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            database = Database(url)
            try:
                await scenario(database)
            finally:
                await database.close()

        asyncio.run(main())

    return run
