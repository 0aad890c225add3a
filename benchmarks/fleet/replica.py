"""One simulated replica: continuous batching step by step, and adapters in tiers that fill over links."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.fleet.events import Events
from benchmarks.fleet.profile import Profile
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.cluster.views import Tier
from manylora.ids import ReplicaId

MOST_SEEDED_USES = 64
"""Uses that a seeded adapter begins with at most: more change no order that a run could show."""


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way. Times in seconds; negative: it has not happened. `tier` is the adapter's at its arrival."""

    number: int
    at_s: float
    adapter: str
    num_bytes: int
    prompt: int
    output: int
    replica: int = -1
    tier: Tier = Tier.STORE
    ticket: int = 0
    edge: int = 0
    first_s: float = -1.0
    end_s: float = -1.0
    tries: int = 0
    left: int = 0  # prompt tokens to compute


@dataclass(slots=True)
class Counts:
    """Totals of a replica: bytes that came into each tier over its link, by tier, and seconds of steps."""

    moved_bytes: dict[Tier, int] = field(default_factory=lambda: dict.fromkeys(Tier, 0))
    busy_s: float = 0.0


class Replica:
    """The engine's order: a request waits for its adapter, then for a row, then for its prompt's chunks.

    The tiers evict as the engine's do: they are the engine's own `PinnedCache`. Each link carries one load at a time.
    on_first, on_end  called with a request at its first and at its last token
    """

    def __init__(
        self,
        name: ReplicaId,
        profile: Profile,
        events: Events,
        on_first: Callable[[Call], None],
        on_end: Callable[[Call], None],
    ) -> None:
        self.name, self.profile, self.events = name, profile, events
        self.is_alive = True
        self.counts = Counts()
        self.bank: PinnedCache[str] = PinnedCache(profile.bank_bytes)
        self.host: PinnedCache[str] = PinnedCache(profile.host_bytes)
        self.disk: PinnedCache[str] = PinnedCache(profile.disk_bytes)
        self.kept: dict[str, int] = {}  # adapters that placement pins here, with their bytes
        self.changed: set[str] = set()  # adapters whose tier changed since the last heartbeat
        self.outstanding: dict[int, Call] = {}  # taken, and not at an end
        self.ahead_tokens = 0  # prompt tokens before a newcomer's first token
        self._on_first, self._on_end = on_first, on_end
        self._loading: dict[str, list[Call]] = {}
        self._goals: dict[str, Tier] = {}  # of loads that no request waits for
        self._roomless: deque[tuple[str, int]] = deque()  # read, without room in a bank that is all pinned
        self._links = [0.0, 0.0, 0.0]
        self._ready: deque[Call] = deque()
        self._prompts: deque[Call] = deque()
        self._decoding = 0
        self._running = 0
        self._step = 0
        self._ends: dict[int, list[Call]] = {}
        self._is_stepping = False

    def tier(self, adapter: str) -> Tier:
        """Return the nearest tier that has an adapter."""
        if adapter in self.bank:
            return Tier.DEVICE
        if adapter in self.host:
            return Tier.HOST
        return Tier.DISK if adapter in self.disk else Tier.STORE

    def take(self, call: Call) -> None:
        """Take a request, and set its `tier`."""
        call.tier = self.tier(call.adapter)
        self.outstanding[call.number] = call
        self.ahead_tokens += call.prompt
        if call.tier is Tier.DEVICE:
            self._admit(call)
            self._begin_step()
        else:
            self._load(call.adapter, call.num_bytes).append(call)

    def keep(self, adapters: dict[str, int]) -> None:
        """Pin these adapters, which are loaded if need be, and unpin all others that were kept."""
        for adapter in self.kept.keys() - adapters.keys():
            if adapter in self.bank:
                self.bank.unpin(adapter, was_used=False)
        fresh = [(adapter, size) for adapter, size in adapters.items() if adapter not in self.kept]
        self.kept = dict(adapters)
        for adapter, num_bytes in fresh:
            if adapter in self.bank:
                self.bank.pin(adapter)
            else:
                self._load(adapter, num_bytes)
        self._retry_roomless()

    def prefetch(self, adapter: str, num_bytes: int, tier: Tier) -> None:
        """Bring an adapter into a lower tier, and no nearer."""
        if self.tier(adapter) > tier and adapter not in self._loading:
            self._loading[adapter] = []
            self._goals[adapter] = tier
            self._move(adapter, num_bytes, self.tier(adapter))

    def seed(self, adapter: str, num_bytes: int, uses: int, nearest: Tier) -> None:
        """Put an adapter into the tiers up to `nearest`, as after a long past of `uses` requests."""
        for tier, cache in ((Tier.DISK, self.disk), (Tier.HOST, self.host), (Tier.DEVICE, self.bank)):
            if tier >= nearest and cache.budget_bytes:
                self._add(cache, adapter, num_bytes)
                counted = min(uses, MOST_SEEDED_USES) if adapter in cache else 0
                for _ in range(counted):
                    cache.pin(adapter)
                for _ in range(counted):
                    cache.unpin(adapter)

    def die(self) -> list[Call]:
        """End at once, and return the requests that had no end."""
        self.is_alive = False
        return list(self.outstanding.values())

    def _load(self, adapter: str, num_bytes: int) -> list[Call]:
        """Start a load unless one is under way, and return the requests that wait for it."""
        waiting = self._loading.get(adapter)
        self._goals.pop(adapter, None)
        if waiting is None:
            waiting = self._loading[adapter] = []
            self._move(adapter, num_bytes, self.tier(adapter))
        return waiting

    def _move(self, adapter: str, num_bytes: int, tier: Tier) -> None:
        """Send an adapter over the link out of `tier`."""
        link = tier - 1
        rates = self.profile.rates
        if tier is not Tier.STORE:
            self._add(self.host if tier is Tier.HOST else self.disk, adapter, num_bytes)
        begin = max(self.events.now_s, self._links[link])
        self._links[link] = begin + num_bytes / rates.bytes_per_s[link]
        self.counts.moved_bytes[Tier(link)] += num_bytes
        self.events.at(self._links[link] + rates.fixed_s[link], lambda _: self._moved(adapter, num_bytes, Tier(link)))

    def _moved(self, adapter: str, num_bytes: int, tier: Tier) -> None:
        if not self.is_alive:
            return
        if tier is Tier.DISK:
            self._add(self.disk, adapter, num_bytes)
        if tier is Tier.HOST and self.profile.has_host:
            self._add(self.host, adapter, num_bytes)
        if tier is Tier.DEVICE:
            self._place(adapter, num_bytes)
        elif self._goals.get(adapter, Tier.DEVICE) is tier:
            del self._goals[adapter], self._loading[adapter]
        else:
            self._move(adapter, num_bytes, tier)

    def _place(self, adapter: str, num_bytes: int) -> None:
        if not self.bank.reserve(adapter, num_bytes, self._changed):
            self._roomless.append((adapter, num_bytes))
            return
        if adapter not in self.kept:
            self.bank.unpin(adapter, was_used=False)  # a reserved entry is pinned
        self.changed.add(adapter)
        for call in self._loading.pop(adapter):
            self._admit(call)
        self._begin_step()

    def _retry_roomless(self) -> None:
        for _ in range(len(self._roomless)):
            self._place(*self._roomless.popleft())

    def _add(self, cache: PinnedCache[str], adapter: str, num_bytes: int) -> None:
        """Put an adapter into a lower tier, or count one more use of it there."""
        self.changed.add(adapter)
        if adapter in cache:
            cache.pin(adapter)
            cache.unpin(adapter)
        elif cache.reserve(adapter, num_bytes, self._changed):
            cache.unpin(adapter, was_used=False)

    def _changed(self, adapter: str) -> None:
        self.changed.add(adapter)

    def _admit(self, call: Call) -> None:
        self.bank.pin(call.adapter)
        self._ready.append(call)

    def _begin_step(self) -> None:
        if self._is_stepping or not self.is_alive:
            return
        profile = self.profile
        while self._ready and self._running < profile.rows:
            call = self._ready.popleft()
            self._running += 1
            call.left = call.prompt
            self._prompts.append(call)
        budget, finished = profile.chunk, []
        while self._prompts and budget:
            head = self._prompts[0]
            done = min(budget, head.left)
            head.left -= done
            budget -= done
            if not head.left:
                finished.append(self._prompts.popleft())
        prompt_rows = profile.chunk - budget
        if not prompt_rows and not self._decoding:
            return
        seconds = profile.step_s + self._decoding * profile.decode_row_s + prompt_rows * profile.prompt_row_s
        self.counts.busy_s += seconds
        self._is_stepping = True
        self.events.at(self.events.now_s + seconds, lambda now: self._end_step(now, finished, prompt_rows))

    def _end_step(self, now: float, finished: list[Call], prompt_rows: int) -> None:
        if not self.is_alive:
            return
        self._is_stepping = False
        self._step += 1
        self.ahead_tokens -= prompt_rows
        for call in finished:
            call.first_s = now
            self._decoding += 1
            self._ends.setdefault(self._step + call.output - 1, []).append(call)
            self._on_first(call)
        ended = self._ends.pop(self._step, None)
        if ended:
            for call in ended:
                self._finish(call, now)
            self._retry_roomless()
        self._begin_step()

    def _finish(self, call: Call, now: float) -> None:
        call.end_s = now
        self._decoding -= 1
        self._running -= 1
        self.bank.unpin(call.adapter)
        del self.outstanding[call.number]
        self._on_end(call)

    def backlog_tokens(self) -> float:
        """Return the tokens before a newcomer's first token, the wait for a row included."""
        late = len(self._ready) + self._running - self.profile.rows
        if late <= 0:
            return float(self.ahead_tokens)
        step_s = self.profile.step_s + self.profile.rows * self.profile.decode_row_s
        row_s = late * self.profile.output * step_s / self.profile.rows
        return self.ahead_tokens + row_s * self.tokens_per_s()

    def tokens_per_s(self) -> float:
        """Return the speed of prompts beside the sequences that run now."""
        profile = self.profile
        step = profile.step_s + self._decoding * profile.decode_row_s + profile.chunk * profile.prompt_row_s
        return profile.chunk / step
