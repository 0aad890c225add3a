"""Backup and restore: the database as of one moment, the pepper and the uploads, in one archive.

A backup may be taken while the control plane serves: SQLite copies its database as of one moment, and the files are
read after it, so that the archive has every file that the database names, unless it was deleted meanwhile. Files that
are deleted or renamed during the backup are skipped.
"""

import contextlib
import os
import secrets
import shutil
import sqlite3
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import URL, create_engine, insert

from manylora.clock import SystemClock
from manylora.config.folders import control_dir, registry_dir
from manylora.config.settings import Config
from manylora.control.process.opening import PEPPER_FILE
from manylora.control.storage.database import FILE_NAME, database_url, migrate, place_of, require_known_revision
from manylora.control.storage.tables import audit
from manylora.control.tenants.audit import MACHINE
from manylora.control.tenants.tenants import OPERATOR
from manylora.errors import ConfigInvalid
from manylora.system.private_files import keep_private, tighten

UPLOADS = "uploads"
"""Name of the uploads in the archive, and in the folder unless `adapters.registry_dir` names another place."""
PAGES_AT_ONCE = 1000
COPY_WAIT_S = 0.01
"""Pause between two parts of the copy, so that writers can go on."""


def back_up(config: Config, file: Path, *, has_database: bool = True) -> None:
    """Write an archive that only its owner can read; a failure leaves no file. Blocks.

    Args:    has_database  False: the archive has the pepper and the uploads alone
    Raises:  `ConfigInvalid` if there is no control plane, the file exists or cannot be written, or the database is not
             SQLite, which has its own tools for backups; `DataTooNew` if a newer release has written it
    """
    places = _Places.of(config)
    if has_database:
        places.require_sqlite("pg_dump --format=custom --file=control.dump")
    if not (places.folder / PEPPER_FILE).is_file():
        raise ConfigInvalid(f"there is no control plane in {places.folder} (control.dir)")
    if file.exists():
        raise ConfigInvalid(f"{file} is there already: a backup overwrites nothing")
    partial = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    copy = partial.with_name(f"{partial.name}.db")
    try:
        if has_database:
            _copy_database(places.database, copy)
            require_known_revision(_sqlite(copy), place_of(places.url))
        _write(places, copy if has_database else None, partial)
        partial.rename(file)
    except sqlite3.Error as error:
        raise ConfigInvalid(f"the backup {file} cannot be made: {place_of(places.url)}: {error}") from error
    except OSError as error:
        raise ConfigInvalid(f"the backup {file} cannot be made: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)


def restore(config: Config, file: Path, *, has_database: bool = True) -> None:
    """Restore a control plane's files from an archive, and migrate its database. Blocks.

    Args:    has_database  False: the archive has none, or its database is left out
    Raises:  `ConfigInvalid` if a file is in the way, or the archive has another form; `DataTooNew`, before any file is
             written, if a newer release has written its database
    """
    keep_private()
    places = _Places.of(config)
    if has_database:
        places.require_sqlite("pg_restore --dbname=…")
    places.require_empty(has_database=has_database)
    places.folder.parent.mkdir(parents=True, exist_ok=True)
    partial = places.folder.with_name(f".{places.folder.name}-{secrets.token_hex(4)}")
    try:
        _read(file, partial, has_database=has_database)
        if has_database:
            require_known_revision(_sqlite(partial / FILE_NAME), f"the database in the backup {file}")
        with contextlib.suppress(FileNotFoundError):
            places.folder.rmdir()
        partial.rename(places.folder)
        _put(places.folder / FILE_NAME, places.database)
        _put(places.folder / UPLOADS, places.uploads)
    except (OSError, tarfile.TarError) as error:
        raise ConfigInvalid(f"the backup {file} cannot be restored: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if has_database:
        migrate(places.url)
        _note_restore(places.url, file)


def _note_restore(url: URL, file: Path) -> None:
    """Record the restore in the audit table of the restored database."""
    engine = create_engine(url.set(drivername="sqlite"))
    row = {"actor_tenant": OPERATOR, "address": MACHINE, "verb": "restore", "kind": "database", "name": file.name}
    with engine.begin() as connection:
        connection.execute(insert(audit).values(**row, at_ms=int(1000 * SystemClock().wall_s())))
    engine.dispose()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Places of a control plane's parts; the database and the uploads may lie outside its folder."""

    folder: Path
    uploads: Path
    url: URL

    @staticmethod
    def of(config: Config) -> "_Places":
        folder = control_dir(config)
        url = database_url(config.control.database_url, folder)
        return _Places(folder=folder, uploads=registry_dir(config), url=url)

    @property
    def database(self) -> Path:
        """Return SQLite's file."""
        return Path(str(self.url.database))

    def is_database(self, path: Path) -> bool:
        """Return whether a file belongs to the database, its journal included."""
        is_sqlite = self.url.get_backend_name() == "sqlite"
        names = {f"{self.database.name}{ending}" for ending in ("", "-wal", "-shm", "-journal")}
        return is_sqlite and path.parent == self.database.parent and path.name in names

    def require_sqlite(self, command: str) -> None:
        if self.url.get_backend_name() != "sqlite":
            raise ConfigInvalid(
                f"the database of control.database_url is PostgreSQL's: its own tools take it (`{command}`), and "
                "`--without-database` the pepper and the uploads; docs/control-plane.md has all of it"
            )

    def require_empty(self, *, has_database: bool) -> None:
        for folder in (self.folder, self.uploads):
            if folder.exists() and any(folder.iterdir()):
                raise ConfigInvalid(f"{folder} is not empty: move away what is in it, a restore overwrites nothing")
        if has_database and self.database.exists():
            raise ConfigInvalid(f"{self.database} is there: move it away, a restore overwrites nothing")


def _sqlite(file: Path) -> URL:
    return URL.create("sqlite", database=str(file))


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database with SQLite's online backup: it copies changed pages again, so the copy is of one moment."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as original,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy, pages=PAGES_AT_ONCE, sleep=COPY_WAIT_S)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a journal beside it


def _write(places: _Places, copy: Path | None, partial: Path) -> None:
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        # Linked files are stored twice (`dereference`): an inode can be reused while the archive is written.
        with tarfile.open(fileobj=stream, mode="w", dereference=True) as archive:
            if copy is not None:
                archive.add(copy, FILE_NAME)
            for path in sorted(places.folder.iterdir()):
                if not places.is_database(path) and path != places.uploads:
                    _add(archive, path, path.name)
            if places.uploads.is_dir():
                _add(archive, places.uploads.resolve(), UPLOADS)
        stream.flush()
        os.fsync(stream.fileno())


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file, or a folder with its contents, to the archive; missing files are skipped.

    Special files, and names that begin with a dot, which are unfinished, are skipped as well.
    Raises `OSError` for a file that ends before the length it had when it was opened.
    """
    if name.rpartition("/")[2].startswith("."):
        return
    try:
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as stream:
                _add_file(archive, stream, name)
        elif stat.S_ISDIR(mode):
            inside = sorted(path.iterdir())
            archive.addfile(archive.gettarinfo(str(path), name))
            for each in inside:
                _add(archive, each, f"{name}/{each.name}")
    except FileNotFoundError:
        return


def _add_file(archive: tarfile.TarFile, stream: BinaryIO, name: str) -> None:
    """Add an open file: it stays complete, even if its name is removed."""
    entry = archive.gettarinfo(arcname=name, fileobj=stream)
    try:
        archive.addfile(entry, stream)
    except OSError as error:
        raise OSError(f"{name}: {error}") from error


def _read(file: Path, partial: Path, *, has_database: bool) -> None:
    partial.mkdir(mode=0o700)
    with tarfile.open(file) as archive:
        wanted = {PEPPER_FILE, FILE_NAME} if has_database else {PEPPER_FILE}
        if missing := wanted - set(archive.getnames()):
            raise ConfigInvalid(f"{file} is no such backup: it lacks {', '.join(sorted(missing))}")
        archive.extractall(partial, filter="data")
    if not has_database:
        (partial / FILE_NAME).unlink(missing_ok=True)
    tighten(partial)


def _put(found: Path, place: Path) -> None:
    """Move the parts that the settings keep outside the folder."""
    if found.exists() and found != place:
        place.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            place.rmdir()
        shutil.move(found, place)
