"""What an edge needs of the control plane: what has changed, a place for its usage records, and credit."""

from collections.abc import Sequence
from typing import Protocol

from manylora.ids import TenantId
from manylora.tenancy import Lease, Snapshot
from manylora.usage import UsageRecord


class ControlClient(Protocol):
    """A control plane somewhere. Every method raises `ControlUnavailable` when it does not answer."""

    async def snapshot(self, since: int) -> Snapshot:
        """What has changed after revision `since`; -1 asks for everything."""

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        """Hand records over; when it returns they are in the ledger. Those that are there already change nothing."""

    async def lease(self, edge: str, tenant: TenantId, nanousd: int) -> Lease:
        """Set up to so much more of a tenant's credit aside for this edge. 0 renews, or asks whether there is any."""

    async def give_back(self, edge: str) -> None:
        """End the leases of an edge whose records have all been shipped."""

    async def close(self) -> None: ...
