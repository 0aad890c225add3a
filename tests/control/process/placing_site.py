"""A control plane whose placer is scripted, with the deployments of one tenant."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import URL, select

from manylora.control.deployment_loads import DeploymentLoads
from manylora.control.deployments.replicas import Sight
from manylora.control.deployments.shared_loads import note_uses
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.placing import Placing
from manylora.control.storage.tables import ledger, placements
from manylora.ids import TenantId
from manylora.tenancy import DeploymentUse
from tests.control.plane import Plane, in_plane
from tests.control.process.scripted_placer import ScriptedPlacer
from tests.control.uploading import base_settings

SECOND = 336_111  # nano-dollars, of $1.21 an hour
CREDIT = 10**12


class Site:
    """A control plane with a scripted placer, and one tenant with a deployment."""

    def __init__(self, plane: Plane, placer: ScriptedPlacer, key: str = "") -> None:
        self.plane, self.placer = plane, placer
        plane.control.placers[:] = [placer]
        self.placing = Placing(plane.control, placer)
        self.key = key

    async def deploy(self, tenant: str = "acme", credit: int = CREDIT, **config: Any) -> None:
        self.key = await self.plane.new_tenant(tenant, credit_nanousd=credit)
        body = {"name": "mine", "config": {"baseModel": "Tiny-Base", **config}}
        made = await self.plane.call("POST", "/v2/deployments", body, key=self.key)
        assert made.status_code == 200, made.text

    def beside(self, placer: ScriptedPlacer) -> "Site":
        """Another control plane on the same database, with a placer of its own."""
        control = replace(self.plane.control, loads=DeploymentLoads(), placers=[placer])
        return Site(replace(self.plane, control=control), placer, self.key)

    async def states(self) -> list[str]:
        """The states of all replicas, in the order of their starts."""
        async with self.plane.control.database.read() as connection:
            rows = await connection.execute(select(placements.c.state).order_by(placements.c.number))
            return [str(state) for state in rows.scalars()]

    async def rounds(self, *seconds: float) -> None:
        """A round at once, and one after each pause."""
        await self.placing.round()
        for pause in seconds:
            self.plane.clock.advance(pause)
            await self.placing.round()

    async def start(self) -> None:
        await self.rounds()
        self.placer.all_are(Sight.WELL)
        await self.rounds()

    async def use(self, load: int) -> None:
        use = DeploymentUse(tenant=TenantId("acme"), name="mine", load=load, last_ms=self.plane.control.now_ms())
        await note_uses(self.plane.control, "edge-1", [use])

    async def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.plane.call("GET", "/v2/deployments/mine", key=self.key)).json()["data"]
        return found

    async def status(self) -> str:
        return str((await self.shown())["status"])

    async def bills(self) -> list[tuple[int, int]]:
        """(seconds, cost) of each row of the ledger that bills seconds."""
        await self.placing.bill(self.plane.control.now_ms())
        async with self.plane.control.database.read() as connection:
            rows = (await connection.execute(select(ledger).order_by(ledger.c.number))).all()
        return [(row.seconds, row.cost_nanousd) for row in rows if row.seconds is not None]

    async def urls(self) -> Sequence[str]:
        found = (await take_snapshot(self.plane.control, -1)).deployments
        return found[0].urls if found else ()


def at_a_site(url: URL, folder: Path, scenario: Any, **settings: Any) -> None:
    async def run(plane: Plane) -> None:
        await scenario(Site(plane, ScriptedPlacer()))

    in_plane(url, folder, run, settings={**base_settings(folder), "placement.placer": "local", **settings})
