"""The edge's copy of the control plane's tenants, keys, prices and uploads, which polling keeps current."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from manylora.clock import Clock
from manylora.errors import ControlUnavailable, ManyloraError
from manylora.ids import KeyId, TenantId
from manylora.rollouts.draw import ArmDraw, DrawnArm
from manylora.server.access.control_client import ControlClient
from manylora.tenancy import (
    DELETED,
    AdapterAct,
    DeploymentFacts,
    KeyFacts,
    PriceFacts,
    RepositoryFacts,
    Snapshot,
    TenantFacts,
    TenantState,
    price_at,
)

log = logging.getLogger(__name__)

MAX_ACTS = 1_000
"""Acts of operators that the edge keeps while the control plane does not answer."""
CLOCK_APART_S = 5.0
"""Difference of two clocks from which on the log names it."""
ENDED_KEPT_MS = 7 * 86_400_000
"""Time for which the copy keeps a key after its end: longer than any batch that the key began."""
REPORT_S = 60.0
"""Seconds between two reports of the last uses of keys."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One version of a tenant's repository of adapters."""

    owner: TenantId
    repository: str
    version: int


class Directory:
    """The edge's copy of the control plane's facts, with its age. It belongs to one event loop.

    on_closed  receives the tenants that the copy knew and that are closed now, one or more; it does not block
    """

    def __init__(self, client: ControlClient, clock: Clock, *, poll_s: float, max_age_s: float) -> None:
        self._client = client
        self._clock = clock
        self._poll_s = poll_s
        self._max_age_s = max_age_s
        self._revision, self._epoch = -1, ""
        self._answered_s: float | None = None
        self._refreshing = asyncio.Lock()
        self._tenants: dict[TenantId, TenantFacts] = {}
        self._keys: dict[KeyId, KeyFacts] = {}
        self._prices: dict[str, dict[int, PriceFacts]] = {}
        self._repositories: dict[tuple[TenantId, str], RepositoryFacts] = {}
        self._deployments: dict[tuple[str, str], DeploymentFacts] = {}  # by tenant and name
        self._placed: dict[tuple[str, str], DeploymentFacts] = {}  # with deleted ones that have replicas
        self._starts, self._failed_starts = 0, 0  # of all deployments that ever were
        self._own: dict[TenantId, set[tuple[TenantId, str]]] = {}  # keys into `_repositories`, by owner
        self._lent: set[tuple[TenantId, str]] = set()  # keys of repositories that other tenants may use
        self._uses: dict[KeyId, int] = {}  # last uses since the last report
        self._acts: deque[AdapterAct] = deque(maxlen=MAX_ACTS)  # not reported yet
        self._acts_part = MAX_ACTS  # acts in the next report
        self._reported_s = clock.monotonic_s()
        self._batch_price_percent = 100
        self._differs = False  # the control plane's clock, as of the last answer
        self.on_closed: Callable[[Sequence[TenantId]], None] = lambda tenants: None
        self.pepper = ""

    def note_use(self, key: KeyId) -> None:
        """Note the use of a valid key; `report_uses` sends it to the control plane within about a minute."""
        self._uses[key] = int(1000 * self._clock.wall_s())

    async def report_uses(self, *, at_once: bool = False) -> None:
        """Report the uses of keys, at most once in `REPORT_S` unless `at_once`.

        A control plane of the first release does not have this route; the uses are dropped then.
        """
        now_s = self._clock.monotonic_s()
        if not self._uses or (now_s - self._reported_s < REPORT_S and not at_once):
            return
        self._reported_s, taken = now_s, self._uses
        self._uses = {}
        with contextlib.suppress(ControlUnavailable):
            await self._client.report_uses(list(taken.items()))

    async def report_act(self, act: AdapterAct) -> None:
        """Report an operator's act on an adapter; keep it for a later call if the control plane does not answer."""
        self._acts.append(act)
        await self.report_acts()

    async def report_acts(self) -> None:
        """Report the acts that wait, in parts: a failure halves the next part, a success makes it an eighth larger.

        A control plane of the first release does not have this route; the acts wait on, and the oldest are dropped.
        """
        with contextlib.suppress(ControlUnavailable):
            while taken := list(islice(self._acts, self._acts_part)):
                await self._report_part(taken)

    async def _report_part(self, taken: Sequence[AdapterAct]) -> None:
        try:
            await self._client.report_acts(taken)
        except ControlUnavailable:
            self._acts_part = max(1, len(taken) // 2)
            raise
        self._acts_part = min(MAX_ACTS, self._acts_part + max(1, self._acts_part // 8))
        for act in taken:
            if act in self._acts:
                self._acts.remove(act)

    async def refresh(self) -> None:
        """Fetch the changes since the last answer and apply them, one call after the other.

        Raises `ControlUnavailable`.
        """
        async with self._refreshing:  # the answer to an earlier call must not replace that to a later one
            begun_s = self._clock.monotonic_s()
            begun_wall_s = self._clock.wall_s()
            snapshot = await self._client.snapshot(self._revision, self._epoch)
            self._compare_clocks(snapshot.taken_ms / 1000, begun_wall_s, self._clock.wall_s())
            self._apply(snapshot)
            self._answered_s = begun_s

    async def follow(self) -> None:
        """Poll the control plane until cancelled, also while it does not answer."""
        is_answering = True
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.refresh()
                await self.report_acts()
                await self.report_uses()
            except ManyloraError as error:
                if is_answering:
                    log.warning("control.unavailable error=%s", error.message)
                is_answering = False
            except Exception:  # the polling must go on after any error: an outdated copy refuses every request
                if is_answering:
                    log.exception("control.unavailable")
                is_answering = False
            else:
                if not is_answering:
                    log.warning("control.available_again")
                is_answering = True

    @property
    def age_s(self) -> float:
        """Return the seconds since the control plane's last answer; infinity before the first."""
        return float("inf") if self._answered_s is None else self._clock.monotonic_s() - self._answered_s

    def require_fresh(self) -> None:
        """Raise `ControlUnavailable` if the copy is older than `max_age_s`."""
        if self.age_s > self._max_age_s:
            raise ControlUnavailable(
                f"the control plane has not answered for longer than {self._max_age_s:g} s "
                "(control.snapshot_max_age_s); repeat the request"
            )

    def numbers(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Return the values of the metrics of all dedicated deployments, by name and labels."""
        placed = self._placed.values()
        ready = sum(len(each.urls) for each in placed)
        starting, draining = sum(each.starting for each in placed), sum(each.draining for each in placed)
        return {
            "manylora_deployment_replicas": {("starting",): starting, ("ready",): ready, ("draining",): draining},
            "manylora_deployment_starts": {(): self._starts},
            "manylora_deployment_failed_starts": {(): self._failed_starts},
        }

    def tenant(self, tenant: TenantId) -> TenantFacts | None:
        return self._tenants.get(tenant)

    def key(self, key: KeyId) -> KeyFacts | None:
        return self._keys.get(key)

    def price(self, base: str, moment_ms: int, *, is_batch: bool = False) -> PriceFacts | None:
        """Return the price of a base model at a moment, in milliseconds since 1970; None if it has no price then.

        `is_batch`: whether to return the price of a line of a batch.
        """
        price = price_at(self._prices.get(base, {}).values(), base, moment_ms)
        return price.at_percent(self._batch_price_percent) if price is not None and is_batch else price

    def key_of_origin(self, origin: KeyId) -> KeyFacts | None:
        """Return a valid key that rotations have made of a first key; None if there is none."""
        return next((key for key in self._keys.values() if key.origin == origin), None)

    def deployment(self, tenant: str, name: str) -> DeploymentFacts | None:
        """Return a tenant's dedicated deployment by its name; None: it has none of that name."""
        return self._deployments.get((tenant, name.lower()))

    def upload(self, tenant: TenantId, name: str, draw: ArmDraw | None = None) -> Upload | None:
        """Return the upload that a name means to a tenant; None if the tenant may use no upload of that name.

        `repo` is the newest version, `repo/3` the third version, and `repo/prod` the version of the alias `prod`. The
        name of another tenant's shared or public repository begins with its owner: `owner/repo/3`. If the first word is
        a present or former repository of the tenant itself, it never means an owner. Otherwise an owner of that name
        could replace the tenant's adapter once the tenant archives a version. `draw` chooses among the versions of an
        alias, and notes its choice; without it an alias is the version with the largest share.
        """
        first, _, rest = name.rstrip("/").partition("/")
        if self.knows(tenant, first):
            return self._version(tenant, tenant, first, rest, draw)
        repository, _, version = rest.partition("/")
        return self._version(tenant, TenantId(first), repository, version, draw)

    def knows(self, tenant: TenantId, repository: str) -> bool:
        """Return whether a tenant has, or has had, a repository of that name."""
        return (tenant, repository) in self._repositories

    def has_tenant(self, tenant: str) -> bool:
        return TenantId(tenant) in self._tenants

    def listed(self, tenant: TenantId) -> list[tuple[str, Upload]]:
        """Return every name with which `upload` finds an upload for a tenant, sorted by repository.

        A repository has a name for its newest version, for each version's number and for each alias. The list leaves
        out the longer spelling of the tenant's own repositories (`tenant/repo`).
        """
        found: list[tuple[str, Upload]] = []
        for key in sorted(self._own.get(tenant, set()) | self._lent):
            facts = self._repositories[key]
            is_shadowed = facts.owner != tenant and self.knows(tenant, facts.owner)
            if not facts.versions or is_shadowed or not _may_use(tenant, facts):
                continue
            name = facts.name if facts.owner == tenant else f"{facts.owner}/{facts.name}"
            numbers = [("", facts.versions[-1]), *((f"/{number}", number) for number in facts.versions)]
            for ending, number in (*numbers, *((f"/{alias}", number) for alias, number in facts.aliases)):
                found.append((f"{name}{ending}", Upload(facts.owner, facts.name, number)))
        return found

    def _version(
        self, tenant: TenantId, owner: TenantId, repository: str, wanted: str, draw: ArmDraw | None
    ) -> Upload | None:
        facts = self._repositories.get((owner, repository))
        if facts is None or not facts.versions or not _may_use(tenant, facts):
            return None
        if not wanted:
            return Upload(owner, repository, facts.versions[-1])
        number = _drawn(facts, wanted, draw) or dict(facts.aliases).get(wanted)
        if number is None and wanted.isascii() and wanted.isdigit() and not wanted.startswith("0"):
            number = int(wanted) if len(wanted) < 10 else None
        return Upload(owner, repository, number) if number in facts.versions and number is not None else None

    def _compare_clocks(self, told_s: float, begun_s: float, ended_s: float) -> None:
        """Log once that the control plane's clock shows a moment far outside those of the question and the answer."""
        apart_s = told_s - min(max(told_s, begun_s), ended_s)
        differs = told_s > 0 and abs(apart_s) > CLOCK_APART_S
        if differs and not self._differs:
            log.warning(
                "control.clock_differs by_s=%+.0f: the control plane's clock and this machine's differ "
                "(docs/fleet-limits.md)",
                apart_s,
            )
        self._differs = differs

    def _apply(self, snapshot: Snapshot) -> None:
        closed = [tenant.id for tenant in snapshot.tenants if self._closes(tenant)]
        if snapshot.is_whole:
            self._tenants.clear()
            self._keys.clear()
            self._prices.clear()
            self._repositories.clear()
            self._deployments.clear()
            self._placed.clear()
            self._own.clear()
            self._lent.clear()
        self.pepper = snapshot.pepper
        self._batch_price_percent = snapshot.batch_price_percent
        self._tenants |= {tenant.id: tenant for tenant in snapshot.tenants}
        for key in snapshot.keys:
            if key.is_revoked:
                self._keys.pop(key.id, None)
            else:
                self._keys[key.id] = key
        if snapshot.keys:
            self._forget_ended(snapshot.taken_ms)
        for price in snapshot.prices:
            self._prices.setdefault(price.base, {})[price.version] = price
        for repository in snapshot.repositories:
            self._keep(repository)
        for deployment in snapshot.deployments:
            self._keep_placed(deployment)
        if snapshot.deployment_starts is not None:
            self._starts, self._failed_starts = snapshot.deployment_starts
        self._revision, self._epoch = snapshot.revision, snapshot.epoch
        if closed:
            self.on_closed(closed)

    def _closes(self, facts: TenantFacts) -> bool:
        """Return whether facts close a tenant. One that the copy does not know has made no request here."""
        known = self._tenants.get(facts.id)
        return known is not None and known.state is not TenantState.CLOSED and facts.state is TenantState.CLOSED

    def _keep_placed(self, facts: DeploymentFacts) -> None:
        """Keep the facts of a deployment; those of a deleted one only while it has replicas."""
        key = (facts.tenant, facts.name)
        self._deployments.pop(key, None)
        self._placed.pop(key, None)
        if facts.state != DELETED:
            self._deployments[key] = facts
        if facts.state != DELETED or facts.starting or facts.draining:
            self._placed[key] = facts

    def _forget_ended(self, now_ms: int) -> None:
        """Drop keys that ended long ago, such as sessions of the console, of which each day brings more."""
        oldest_ms = now_ms - ENDED_KEPT_MS
        for key in [key for key in self._keys.values() if key.expires_ms is not None and key.expires_ms < oldest_ms]:
            del self._keys[key.id]

    def _keep(self, facts: RepositoryFacts) -> None:
        key = (facts.owner, facts.name)
        self._repositories[key] = facts
        self._own.setdefault(facts.owner, set()).add(key)
        is_lent = facts.is_public or bool(facts.shared_with)
        (self._lent.add if is_lent else self._lent.discard)(key)


def _drawn(facts: RepositoryFacts, alias: str, draw: ArmDraw | None) -> int | None:
    """Return the version of an alias for a request, and note it; None: no draw, or no rule with a usable version."""
    if draw is None:
        return None
    rollout = dict(facts.rollouts).get(alias)
    number = dict(facts.aliases).get(alias)
    if rollout is not None:
        point = draw.point(facts.owner, f"{facts.name}/{alias}", rollout.sticky)
        number = rollout.version_at(point, facts.versions)
    if number is None:
        return None
    shadow = None if rollout is None or rollout.shadow not in facts.versions else rollout.shadow
    name = f"{facts.name}/{alias}"
    draw.drawn[facts.owner, name] = DrawnArm(owner=facts.owner, alias=name, version=number, shadow=shadow)
    return number


def _may_use(tenant: TenantId, facts: RepositoryFacts) -> bool:
    return facts.owner == tenant or facts.is_public or tenant in facts.shared_with
