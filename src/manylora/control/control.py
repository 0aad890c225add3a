"""What every part of the control plane is given: its database, its clock, its pepper and its settings."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from manylora.clock import Clock
from manylora.config.folders import registry_dir
from manylora.config.settings import Config
from manylora.control.bases import served_base
from manylora.control.key_uses import KeyUses
from manylora.control.storage.database import Database

if TYPE_CHECKING:
    from manylora.control.billing.heavy_read_client import HeavyReads

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
    reads: "HeavyReads"

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
