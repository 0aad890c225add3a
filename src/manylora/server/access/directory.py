"""The edge's own copy of tenants, keys, prices and uploads, kept up with the control plane by asking for changes."""

import asyncio
import contextlib
import logging
from collections import deque
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.errors import ControlUnavailable, ManyloraError
from manylora.ids import KeyId, TenantId
from manylora.server.access.control_client import ControlClient
from manylora.tenancy import AdapterAct, KeyFacts, PriceFacts, RepositoryFacts, Snapshot, TenantFacts, price_at

log = logging.getLogger(__name__)

MAX_ACTS = 1_000
"""Kept while the control plane does not answer."""
REPORT_S = 60.0
"""Between two reports of when keys were used."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One version of somebody's repository."""

    owner: TenantId
    repository: str
    version: int


class Directory:
    """What is known of the control plane, and how old it is. It belongs to one event loop."""

    def __init__(self, client: ControlClient, clock: Clock, *, poll_s: float, max_age_s: float) -> None:
        self._client = client
        self._clock = clock
        self._poll_s = poll_s
        self._max_age_s = max_age_s
        self._revision, self._epoch = -1, ""
        self._told_s: float | None = None
        self._tenants: dict[TenantId, TenantFacts] = {}
        self._keys: dict[KeyId, KeyFacts] = {}
        self._prices: dict[str, dict[int, PriceFacts]] = {}
        self._repositories: dict[tuple[TenantId, str], RepositoryFacts] = {}
        self._own: dict[TenantId, set[tuple[TenantId, str]]] = {}  # keys of those by their owner
        self._lent: set[tuple[TenantId, str]] = set()  # keys of those that others may use
        self._uses: dict[KeyId, int] = {}  # since the last report
        self._acts: deque[AdapterAct] = deque(maxlen=MAX_ACTS)  # not told yet
        self._reported_s = clock.monotonic_s()
        self.pepper = ""

    def note_use(self, key: KeyId) -> None:
        """A valid key was shown; the control plane is told within about a minute."""
        self._uses[key] = int(1000 * self._clock.wall_s())

    async def report_uses(self, *, at_once: bool = False) -> None:
        """Tell the control plane, once in `REPORT_S` or at once; one of the first release has no place for it."""
        now_s = self._clock.monotonic_s()
        if not self._uses or (now_s - self._reported_s < REPORT_S and not at_once):
            return
        self._reported_s, taken = now_s, self._uses
        self._uses = {}
        with contextlib.suppress(ControlUnavailable):
            await self._client.report_uses(list(taken.items()))

    async def report_act(self, act: AdapterAct) -> None:
        """Tell the control plane what an operator did to an adapter here; what it does not take now waits."""
        self._acts.append(act)
        await self.report_acts()

    async def report_acts(self) -> None:
        """Tell what waits. A control plane of the first release takes none of it, and the oldest are given up."""
        taken = list(self._acts)
        if not taken:
            return
        with contextlib.suppress(ControlUnavailable):
            await self._client.report_acts(taken)
            for act in taken:
                if act in self._acts:
                    self._acts.remove(act)

    async def refresh(self) -> None:
        """Ask once what has changed. Raises `ControlUnavailable`."""
        begun_s = self._clock.monotonic_s()
        snapshot = await self._client.snapshot(self._revision, self._epoch)
        self._apply(snapshot)
        self._told_s = begun_s

    async def follow(self) -> None:
        """Ask again and again, until cancelled; a control plane that does not answer is asked on."""
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
            except Exception:  # whatever it is, a copy that nobody keeps up would lock everybody out in the end
                if is_answering:
                    log.exception("control.unavailable")
                is_answering = False
            else:
                if not is_answering:
                    log.warning("control.available_again")
                is_answering = True

    @property
    def age_s(self) -> float:
        """Seconds since the control plane answered last; infinite if it never has."""
        return float("inf") if self._told_s is None else self._clock.monotonic_s() - self._told_s

    def require_fresh(self) -> None:
        """Raises `ControlUnavailable` where too much may have changed since the control plane answered last."""
        if self.age_s > self._max_age_s:
            raise ControlUnavailable(
                f"the control plane has not answered for longer than {self._max_age_s:g} s "
                "(control.snapshot_max_age_s); repeat the request"
            )

    def tenant(self, tenant: TenantId) -> TenantFacts | None:
        return self._tenants.get(tenant)

    def key(self, key: KeyId) -> KeyFacts | None:
        return self._keys.get(key)

    def price(self, base: str, moment_ms: int) -> PriceFacts | None:
        """Return the price of a base model in force at a moment; None where it has none then."""
        return price_at(self._prices.get(base, {}).values(), base, moment_ms)

    def upload(self, tenant: TenantId, name: str) -> Upload | None:
        """What a tenant means by a name; None where there is nothing of that name that the tenant may use.

        `repo` is the newest version, `repo/3` the third, `repo/prod` what that alias stands for; a repository of
        another tenant, shared or public, has its owner before it: `owner/repo/3`. A first word that is, or was, a
        repository of one's own never means an owner: whoever took that name could put a model in the place of one's own
        as soon as a version is archived.
        """
        first, _, rest = name.rstrip("/").partition("/")
        if self.knows(tenant, first):
            return self._version(tenant, tenant, first, rest)
        repository, _, version = rest.partition("/")
        return self._version(tenant, TenantId(first), repository, version)

    def knows(self, tenant: TenantId, repository: str) -> bool:
        """Whether a tenant has, or has had, a repository of that name."""
        return (tenant, repository) in self._repositories

    def has_tenant(self, tenant: str) -> bool:
        return TenantId(tenant) in self._tenants

    def listed(self, tenant: TenantId) -> list[tuple[str, Upload]]:
        """Every name under which `upload` finds something for a tenant, sorted by repository: the newest version,
        each by its number, each alias. Only the longer spelling of its own (`tenant/repo`) is left out."""
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

    def _version(self, tenant: TenantId, owner: TenantId, repository: str, wanted: str) -> Upload | None:
        facts = self._repositories.get((owner, repository))
        if facts is None or not facts.versions or not _may_use(tenant, facts):
            return None
        if not wanted:
            return Upload(owner, repository, facts.versions[-1])
        number = dict(facts.aliases).get(wanted)
        if number is None and wanted.isascii() and wanted.isdigit() and not wanted.startswith("0"):
            number = int(wanted) if len(wanted) < 10 else None
        return Upload(owner, repository, number) if number in facts.versions and number is not None else None

    def _apply(self, snapshot: Snapshot) -> None:
        if snapshot.is_whole:
            self._tenants.clear()
            self._keys.clear()
            self._prices.clear()
            self._repositories.clear()
            self._own.clear()
            self._lent.clear()
        self.pepper = snapshot.pepper
        self._tenants |= {tenant.id: tenant for tenant in snapshot.tenants}
        for key in snapshot.keys:
            if key.is_revoked:
                self._keys.pop(key.id, None)
            else:
                self._keys[key.id] = key
        for price in snapshot.prices:
            self._prices.setdefault(price.base, {})[price.version] = price
        for repository in snapshot.repositories:
            self._keep(repository)
        self._revision, self._epoch = snapshot.revision, snapshot.epoch

    def _keep(self, facts: RepositoryFacts) -> None:
        key = (facts.owner, facts.name)
        self._repositories[key] = facts
        self._own.setdefault(facts.owner, set()).add(key)
        is_lent = facts.is_public or bool(facts.shared_with)
        (self._lent.add if is_lent else self._lent.discard)(key)


def _may_use(tenant: TenantId, facts: RepositoryFacts) -> bool:
    return facts.owner == tenant or facts.is_public or tenant in facts.shared_with
