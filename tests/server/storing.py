"""The control plane of a server under test: its database, its folder of blobs, and the routes of edges."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import update

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.control.app.application import create_control_app
from manylora.control.billing.heavy_read_client import HeavyReads
from manylora.control.control import Control
from manylora.control.process.first_start import ensure_first_start
from manylora.control.storage.tables import tenants
from manylora.control.stored.objects import TenantStore
from manylora.control.stored.retention import delete_old
from manylora.control.tenants.tenants import insert_tenant
from manylora.errors import NameTaken
from manylora.server.access.control_client import HttpControlClient
from manylora.tenancy import TenantState
from tests.control.plane import EDGE_TOKEN, migrated_in, new_control


@dataclass
class StoringPlane:
    """A control plane that keeps what tenants of servers under test give."""

    control: Control
    client: HttpControlClient = field(init=False)
    is_away: bool = False

    def blobs(self) -> list[bytes]:
        """The contents of all files and responses."""
        return [path.read_bytes() for path in sorted(self.control.blobs_dir.glob("*/*"))]

    async def close_tenant(self, code: str) -> None:
        """Close a tenant, which may have no row yet."""
        async with self.control.database.write() as connection:
            with contextlib.suppress(NameTaken):
                await insert_tenant(connection, code, now_ms=self.control.now_ms(), name=code)
            await connection.execute(update(tenants).where(tenants.c.id == code).values(state=TenantState.CLOSED))

    async def sweep(self) -> None:
        await delete_old(TenantStore.of(self.control))


@asynccontextmanager
async def storing_plane(folder: Path, config: Config, clock: Clock) -> AsyncIterator[StoringPlane]:
    """A control plane whose data are below `folder`; the next one there has them."""
    control = new_control(migrated_in(folder), folder, config, clock, HeavyReads(), is_key_needed=False)
    plane, app = StoringPlane(control), create_control_app(control)

    async def reached(scope: Any, receive: Any, send: Any) -> None:
        if plane.is_away:
            raise httpx2.ConnectError("away")
        await app(scope, receive, send)

    plane.client = HttpControlClient(EDGE_TOKEN, app=reached)
    try:
        await ensure_first_start(control)
        yield plane
    finally:
        await plane.client.close()
        await control.close()
