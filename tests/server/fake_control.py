"""A control plane in a few lines: it tells what a test sets, keeps what is shipped, and may be away."""

from collections.abc import Sequence

from manylora.allowances import AllowanceAnswer, AllowanceReport
from manylora.clock import ManualClock
from manylora.control.edges.allowances import AllowancePools
from manylora.errors import ControlUnavailable
from manylora.ids import TenantId
from manylora.tenancy import AdapterAct, DeploymentUse, Lease, Snapshot
from manylora.usage import UsageRecord

PEPPER = "a5" * 32


class FakeControl:
    """`snapshot_` is what is told whole; credit: of every tenant, less what has been leased."""

    def __init__(self, snapshot: Snapshot | None = None, *, credit: int = 0) -> None:
        self.snapshot_ = snapshot or Snapshot(revision=0, taken_ms=0, is_whole=True, pepper=PEPPER)
        self.credit = credit
        self.records: dict[str, UsageRecord] = {}
        self.shipments = 0
        self.granted: dict[tuple[str, TenantId, str], int] = {}
        self.budgets: dict[str, int] = {}  # by key
        self.given_back: list[str] = []
        self.questions = 0
        self.uses: dict[str, int] = {}
        self.acts: list[AdapterAct] = []
        self.deployment_uses: list[DeploymentUse] = []
        self.is_away = False
        self.expires_ms = 10**15
        self.now_ms = 0
        self.pools = AllowancePools(ManualClock())

    async def snapshot(self, since: int, epoch: str) -> Snapshot:
        self._require()
        return self.snapshot_

    async def ship(self, records: Sequence[UsageRecord]) -> None:
        self._require()
        self.shipments += 1
        for record in records:
            self.records.setdefault(record.id, record)

    async def report_uses(self, last: Sequence[tuple[str, int]]) -> None:
        self._require()
        self.uses.update(last)

    async def report_acts(self, acts: Sequence[AdapterAct]) -> None:
        self._require()
        self.acts.extend(acts)

    async def report_deployments(self, edge: str, uses: Sequence[DeploymentUse]) -> None:
        self._require()
        self.deployment_uses.extend(uses)

    async def lease(self, edge: str, tenant: TenantId, nanousd: int, key: str = "") -> Lease:
        self._require()
        self.questions += 1
        extra = min(nanousd, self.budgets[key] if key else self.credit)
        if key:
            self.budgets[key] -= extra
        else:
            self.credit -= extra
        granted = self.granted[edge, tenant, key] = self.granted.get((edge, tenant, key), 0) + extra
        reason = "" if extra >= nanousd else "budget" if key else "credit"
        return Lease(
            tenant=tenant, granted_nanousd=granted, expires_ms=self.expires_ms, reason=reason, now_ms=self.now_ms
        )

    async def share_limits(self, report: AllowanceReport) -> AllowanceAnswer:
        self._require()
        return self.pools.answer(report)

    async def give_back(self, edge: str) -> None:
        self._require()
        self.given_back.append(edge)

    async def close(self) -> None:
        return

    def _require(self) -> None:
        if self.is_away:
            raise ControlUnavailable("away")
