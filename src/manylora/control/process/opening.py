"""Opening of a control plane: its folder, pepper and database."""

import os
import secrets
from pathlib import Path

from sqlalchemy.engine import URL

from manylora.clock import Clock, SystemClock
from manylora.config.folders import control_dir, registry_dir, storage_dir
from manylora.config.settings import Config
from manylora.control.billing.heavy_read_client import HeavyReads, ReadProcess
from manylora.control.control import Control
from manylora.control.storage.database import Database, database_url, migrate, place_of
from manylora.errors import ConfigInvalid
from manylora.system.failures import cause_of
from manylora.system.private_files import make_private, tighten

PEPPER_FILE = "pepper"
PEPPER_BYTES = 32
LEAST_PEPPER_BYTES = 16
"""Limit of its text, which has 64 bytes. A shorter one is damaged, as by a full disk or a crash."""


def open_control(config: Config, *, is_key_needed: bool, clock: Clock | None = None) -> Control:
    """Create the folder and the pepper at the first start, and migrate the database. Blocks.

    Without a token for edges in the settings, a random one is used, which only an edge in this process knows.

    Raises `ConfigInvalid` if the folder or the pepper cannot be used, `ControlUnavailable` if the database cannot.
    """
    folder = control_dir(config)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        pepper = _pepper(folder / PEPPER_FILE)
    except OSError as error:
        raise ConfigInvalid(f"control.dir {folder} cannot be used: {cause_of(error)}") from error
    url = database_url(config.control.database_url, folder)
    try:
        files = _files_of(url)
    except OSError as error:
        raise ConfigInvalid(f"{place_of(url)} cannot be used: {cause_of(error)} (control.database_url)") from error
    migrate(url)
    # After `migrate`, so that data of a newer release stays unchanged.
    tighten(folder, registry_dir(config), storage_dir(config), *files)
    return Control(
        config=config,
        database=Database(url),
        clock=clock or SystemClock(),
        folder=folder,
        pepper=pepper,
        edge_token=config.control.edge_token or secrets.token_hex(PEPPER_BYTES),
        is_key_needed=is_key_needed,
        reads=HeavyReads(ReadProcess(url)),
    )


def _files_of(url: URL) -> tuple[Path, ...]:
    """Return the files of a database; create a missing SQLite file."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return ()
    file = Path(url.database)
    make_private(file)
    return tuple(file.with_name(file.name + ending) for ending in ("", "-wal", "-shm", "-journal"))


def _pepper(file: Path) -> str:
    """Return the pepper in a file; create a missing one. Two processes that start at once use the same."""
    own = file.with_name(f".{file.name}-{os.getpid()}-{secrets.token_hex(4)}")
    if not file.exists():
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(PEPPER_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            file.hardlink_to(own)
        except FileExistsError:
            pass
        finally:
            own.unlink()
    pepper = file.read_bytes().strip()
    if len(pepper) < LEAST_PEPPER_BYTES or not pepper.isascii():
        raise ConfigInvalid(
            f"{file} is damaged: it holds {len(pepper)} bytes, and no secret. Another one knows no key: "
            "restore it from a backup (`manylora control restore`)"
        )
    return pepper.decode()
