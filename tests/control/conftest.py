"""Databases for the tests of the control plane: each test runs on SQLite and on PostgreSQL."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from manylora.adapters.ingest.checking import CheckedFiles, CheckJob, check_files
from manylora.control.registry import intake
from manylora.control.storage.database import Database, database_url
from tests.conftest import missing
from tests.control.emptied_databases import EmptiedDatabases
from tests.control.plane import in_plane, migrated
from tests.control.postgres_server import PostgresServer, find_postgres, postgres_server

Scenario = Callable[[Database], Coroutine[Any, Any, None]]
IN_LONG_RUNS = {
    "tests/control": (
        *("app", "catalogue", "deployments", "evaluations", "exports", "http", "rollouts", "routes", "stored"),
        *("wallet", "webhooks"),
    ),
    "tests/control/billing": (
        *("test_account_reads", "test_corrections", "test_golden", "test_invoices", "test_ledger_laws"),
        *("test_periods", "test_prices"),
    ),
    "tests/control/invoicing": ("test_documents",),
    "tests/control/process": ("test_backup", "test_placing", "test_rounds", "test_spending_stops"),
    "tests/control/registry": ("test_copies", "test_registry", "test_uploads", "test_version_reports"),
    "tests/control/tenants": (
        "test_audit",
        "test_concurrent_logins",
        "test_key",
        "test_limits_of_bases",
        "test_tenants_and",
    ),
}
"""Folders and beginnings of files with tests on PostgreSQL in the long runs alone."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests on PostgreSQL to the long runs where SQLite shows the same law."""
    places = tuple(f"{folder}/{name}" for folder, names in IN_LONG_RUNS.items() for name in names)
    for item in items:
        if item.nodeid.startswith(places) and "postgresql" in item.name and not item.get_closest_marker("long"):
            item.add_marker(pytest.mark.long)


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


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with today's tables, for tests to copy."""
    file = tmp_path_factory.mktemp("migrated") / "control.db"
    file.write_bytes(migrated())
    return file


@pytest.fixture(scope="session")
def emptied_databases(postgres: PostgresServer) -> EmptiedDatabases:
    return EmptiedDatabases.of(postgres)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A database with today's tables and no rows but those of a new one, on either engine."""
    if request.param == "sqlite":
        url = database_url("", tmp_path)
        shutil.copyfile(request.getfixturevalue("migrated_file"), str(url.database))
        yield url
        return
    databases: EmptiedDatabases = request.getfixturevalue("emptied_databases")
    url = databases.take()
    yield url
    databases.give_back(url)


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


@pytest.fixture
def checks_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check uploads in a thread: a process takes 0.25 s to start. `test_uploads.py` uses real processes."""

    async def check(job: CheckJob, timeout_s: float) -> CheckedFiles:
        return await asyncio.wait_for(asyncio.to_thread(check_files, job), timeout_s)

    monkeypatch.setattr(intake, "check_apart", check)


@pytest.fixture
def run(url: URL, tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine function with a control plane, on either database; options as of `in_plane`."""

    def go(scenario: Any, **options: Any) -> None:
        in_plane(url, tmp_path, scenario, **options)

    return go
