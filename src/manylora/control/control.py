"""What every part of the control plane is given: its database, its clock, its pepper and its settings."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL

from manylora.clock import Clock, SystemClock
from manylora.config import Config, control_dir, registry_dir
from manylora.control.bases import served_base
from manylora.control.database import Database, database_url, migrate, place_of
from manylora.control.key_uses import KeyUses
from manylora.control.reading import HeavyReads, ReadProcess
from manylora.errors import ConfigInvalid
from manylora.private_files import make_private, tighten
from manylora.system_failures import cause_of

PEPPER_FILE = "pepper"
PEPPER_BYTES = 32
LEAST_PEPPER_BYTES = 16
"""Of its text; ours has 64. Anything shorter is what a full disk or a crash has left of it."""
SERVED_MS = 600_000
"""After so long without a question an edge's base model counts as served no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control plane's parts, without its routes.

    folder          the database of a default setting, the pepper and the uploads are in it
    pepper          hex; keys and signed URLs are worth nothing without it
    edge_token      by which edges are known
    is_key_needed   off: who sends no key is tenant `default`, and a program on this machine the operator
    epoch           of this process: what an edge knows of another's, perhaps of another database, is told it anew
    uses            when keys were used here, until the caretaker keeps it
    served_ms       when an edge said last that it serves a base model
    reads           where what may take long is read; the default: in this process
    """

    config: Config
    database: Database
    clock: Clock
    folder: Path
    pepper: str
    edge_token: str
    is_key_needed: bool
    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    uses: KeyUses = field(default_factory=KeyUses)
    served_ms: dict[str, int] = field(default_factory=dict)
    reads: HeavyReads = field(default_factory=HeavyReads)

    async def close(self) -> None:
        """End the process of heavy reads, and the database's connections."""
        await self.reads.close()
        await self.database.close()

    @property
    def registry_dir(self) -> Path:
        """The root of the folders of uploads."""
        return registry_dir(self.config) if self.config.adapters.registry_dir else self.folder / "uploads"

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return int(1000 * self.clock.wall_s())

    def note_served(self, base: str) -> None:
        """An edge serves a base model now; empty: it has none yet, or is of an older version and says nothing."""
        if base:
            self.served_ms[base] = self.now_ms()

    def served_bases(self) -> set[str]:
        """Base models of the edges that have asked lately, and the one of this process's own settings."""
        oldest_ms = self.now_ms() - SERVED_MS
        return {served_base(self.config).name, *(base for base, ms in self.served_ms.items() if ms >= oldest_ms)}


def open_control(config: Config, *, is_key_needed: bool, clock: Clock | None = None) -> Control:
    """Make the folder and the pepper at the first start, and bring the database to today's tables. Blocks.

    Without a token for edges in the settings one is drawn: then only an edge in this process can know it.

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
    tighten(folder, registry_dir(config), *files)  # not before: a newer release's data is left as it is
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
    """The files of a database, which is made if it is a file and is not there."""
    if url.get_backend_name() != "sqlite" or not url.database:
        return ()
    file = Path(url.database)
    make_private(file)
    return tuple(file.with_name(file.name + ending) for ending in ("", "-wal", "-shm", "-journal"))


def _pepper(file: Path) -> str:
    """The pepper in a file, made when it is not there; two processes that start at once agree on one."""
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
