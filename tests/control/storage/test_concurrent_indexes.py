"""Indexes of growing tables: an upgrade on PostgreSQL makes them while other programs write."""

import threading
import time

import pytest
from sqlalchemy import URL, Connection, create_engine, text

from manylora.control.storage.concurrent_indexes import INDEXES
from manylora.control.storage.database import migrate
from tests.conftest import long
from tests.control.postgres_server import PostgresServer

VALID = "SELECT count(*) FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname = ANY(:names) AND indisvalid"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND wait_event_type = 'Lock'"


def num_valid(connection: Connection) -> int:
    return int(connection.execute(text(VALID), {"names": list(INDEXES)}).scalar_one())


def drop_one(connection: Connection) -> str:
    name = next(iter(INDEXES))
    connection.execute(text(f"DROP INDEX {name}"))
    return name


@pytest.mark.parametrize("state", ["missing", "half made"])
def test_a_start_makes_what_is_missing_or_half_made(postgres: PostgresServer, state: str) -> None:
    url = postgres.new_database()
    migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        assert num_valid(connection) == len(INDEXES)
        if state == "missing":
            drop_one(connection)
        else:
            connection.execute(
                text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass(:name)"),
                {"name": next(iter(INDEXES))},
            )
        assert num_valid(connection) == len(INDEXES) - 1
    migrate(url)
    with engine.begin() as connection:
        assert num_valid(connection) == len(INDEXES)
    engine.dispose()


@pytest.mark.parametrize("_", long(0))
def test_writers_go_on_while_an_index_is_made(postgres: PostgresServer, _: int) -> None:
    url: URL = postgres.new_database()
    migrate(url)
    engine = create_engine(url)
    lock = text("LOCK TABLE ledger IN ROW EXCLUSIVE MODE")  # that of an insert
    with engine.begin() as connection:
        drop_one(connection)
    with engine.connect() as slow, engine.connect() as other:
        slow.execute(lock)
        making = threading.Thread(target=migrate, args=(url,))
        making.start()
        end_s = time.monotonic() + 60
        while not other.execute(text(WAITING)).scalar_one():
            other.commit()
            assert time.monotonic() < end_s
        other.execute(text("SET LOCAL lock_timeout = '20s'"))
        other.execute(lock)  # a plain CREATE INDEX would be before it, and wait for the first
        other.commit()
        slow.commit()
        making.join()
    with engine.begin() as connection:
        assert num_valid(connection) == len(INDEXES)
    engine.dispose()
