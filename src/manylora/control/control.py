"""The services that every part of the control plane shares: database, clock, pepper and settings."""

import hashlib
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.clock import Clock
from manylora.config.folders import registry_dir, storage_dir
from manylora.config.settings import Config
from manylora.control.bases import served_bases
from manylora.control.deployment_loads import DeploymentLoads
from manylora.control.key_uses import KeyUses
from manylora.control.storage.database import Database

if TYPE_CHECKING:
    from manylora.control.billing.heavy_read_client import HeavyReads
    from manylora.control.deployments.placer import Placer

SERVED_MS = 600_000
"""Time after an edge's last request until its base model counts as no longer served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The control plane's parts, without its routes.

    folder          folder of the pepper, and by default of the database and the uploads
    pepper          secret of the hashes of keys and of signed URLs, in hex
    edge_token      token that edges show
    is_key_needed   False: a caller without a key is the tenant `default`, and on this machine the operator
    epoch           id of this process; an edge that knows another one gets a whole snapshot
    uses            last uses of keys that the janitor has not stored yet
    served_ms       base model → moment at which an edge last named it as served
    reads           queue of reads that may take long
    loads           loads of dedicated deployments, as edges report them
    placers         the placer that runs dedicated deployments; empty: none does
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
    reads: "HeavyReads"
    loads: DeploymentLoads = field(default_factory=DeploymentLoads)
    placers: "list[Placer]" = field(default_factory=list)

    async def close(self) -> None:
        """End the process of heavy reads, and close the database's connections."""
        await self.reads.close()
        await self.database.close()

    @property
    def placer(self) -> "Placer | None":
        """Return the placer that runs dedicated deployments; None: none does."""
        return self.placers[0] if self.placers else None

    @property
    def registry_dir(self) -> Path:
        """Return the root folder of the registry."""
        return registry_dir(self.config) if self.config.adapters.registry_dir else self.folder / "uploads"

    @property
    def blobs_dir(self) -> Path:
        """Return the folder of the bytes of tenants' files and responses: its name comes from the pepper.

        Control planes with databases of their own may have one `storage.dir`, and each deletes blobs that its database
        does not name.
        """
        root = storage_dir(self.config) if self.config.storage.dir else self.folder / "storage"
        return root / "blobs" / hashlib.sha256(f"blobs {self.pepper}".encode()).hexdigest()[:16]

    def now_ms(self) -> int:
        """Return the milliseconds since 1970, UTC."""
        return int(1000 * self.clock.wall_s())

    def note_served(self, base: str) -> None:
        """Note that an edge serves a base model; empty: it has none yet, or is of an older release."""
        if base:
            self.served_ms[base] = self.now_ms()

    def served_bases(self) -> set[str]:
        """Return the base models of edges that called within `SERVED_MS`, and those of the settings."""
        oldest_ms = self.now_ms() - SERVED_MS
        own = {base.name for base in served_bases(self.config)}
        return own | {base for base, ms in self.served_ms.items() if ms >= oldest_ms}
