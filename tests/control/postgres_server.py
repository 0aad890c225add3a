"""A PostgreSQL server for the tests: Debian's, started on a socket of its own folder, gone when they end."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, create_engine

from tests.conftest import missing
from tests.support.waiting import PATIENCE_S, wait_for

BINARIES = "/usr/lib/postgresql"


@dataclass(frozen=True)
class PostgresServer:
    """A running server; each test gets a database of its own."""

    folder: Path

    def url(self, database: str = "postgres") -> URL:
        return URL.create(
            "postgresql+psycopg", username="postgres", database=database, query={"host": str(self.folder)}
        )

    def new_database(self, template: str = "template1") -> URL:
        """Make a database that is a copy of the template."""
        name = f"test_{uuid.uuid4().hex}"
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        engine.dispose()
        return self.url(name)


def find_postgres() -> Path | None:
    """The folder of the newest `initdb`, which Debian keeps outside PATH."""
    found = sorted(Path(BINARIES).glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextmanager
def postgres_server(binaries: Path, *, is_durable: bool = False) -> Iterator[PostgresServer]:
    """Start a server as the user postgres (it refuses root), without fsync unless the test is about crashes."""
    folder = Path(tempfile.mkdtemp(prefix="manylora-pg-"))
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    os.chown(folder, user.pw_uid, user.pw_gid)
    own = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    data = folder / "data"
    make = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(make, check=True, **quiet, **own)  # type: ignore[call-overload]  # keyword arguments of two kinds
    fast = [] if is_durable else ["-c", "fsync=off", "-c", "synchronous_commit=off"]
    serve = [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", *fast]
    process = subprocess.Popen(serve, **quiet, **own)  # type: ignore[call-overload]  # as above
    server = PostgresServer(folder)
    try:
        wait_for(lambda: _answers(server))
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)  # at once, without a checkpoint of files that are removed
        process.wait(PATIENCE_S)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(server: PostgresServer) -> bool:
    engine = create_engine(server.url())
    try:
        with engine.connect():
            return True
    except Exception:  # it is not up yet, whatever it says
        return False
    finally:
        engine.dispose()


@contextmanager
def empty_database() -> Iterator[str]:
    """Yield the URL of an empty database on a server of its own. The test is left out where PostgreSQL is missing."""
    binaries = find_postgres()
    if binaries is None:
        missing("no PostgreSQL server here: apt-get install postgresql")
        return
    with postgres_server(binaries) as server:
        yield server.new_database().render_as_string(hide_password=False)
