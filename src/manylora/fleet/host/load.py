"""The load of one replica, as its host measures it: waiting prompt tokens, speed, and the adapters in each tier."""

from dataclasses import dataclass, field

from manylora.adapter_state import AdapterInfo, AdapterState, LoadTimes, StoreStats
from manylora.clock import Clock
from manylora.engine.events import EngineStats

FIRST_TOKENS_PER_S = 200.0
"""Speed of a replica that has not computed anything yet: a guess, which its first requests replace."""
SHARE = 0.2
"""Weight of a new measurement of the speed."""
NO_TIER = 3
_TIERS = {AdapterState.ON_DEVICE: 0, AdapterState.IN_HOST: 1, AdapterState.ON_DISK: 2}


class ReplicaLoad:
    """The load of one replica as it counts it itself, each request by a number of its owner. Thread: one owner.

    tokens_per_s  moving average of the prompt tokens that the engine computes in a second in which prompts wait,
                  beside the rows that run
    load_share    seconds of adapters' loads per second, between the last two statistics
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiting: dict[int, int] = {}
        self._running: set[int] = set()
        self._begun_s = 0.0
        self._computed = 0
        self._loads: tuple[float, float] | None = None  # the moment of the last statistics, and their seconds of loads
        self.waiting_tokens = 0
        self.tokens_per_s = FIRST_TOKENS_PER_S
        self.load_share = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def backlog_tokens(self) -> int:
        """Tokens before the first token of a request that comes now: waiting prompts, and one of each running row."""
        return self.waiting_tokens + len(self._running)

    def begin(self, number: int, prompt_tokens: int) -> None:
        if not self._waiting:
            self._begun_s, self._computed = self._clock.monotonic_s(), 0
        self._waiting[number] = prompt_tokens
        self.waiting_tokens += prompt_tokens

    def start(self, number: int) -> None:
        """Note the first token of a request, for which its prompt was computed."""
        tokens = self._waiting.pop(number, None)
        if tokens is None:
            return
        self._running.add(number)
        self.waiting_tokens -= tokens
        self._computed += tokens
        now_s = self._clock.monotonic_s()
        if now_s > self._begun_s:
            speed = max(1.0, self._computed / (now_s - self._begun_s))
            self.tokens_per_s += SHARE * (speed - self.tokens_per_s)
        self._begun_s, self._computed = now_s, 0

    def end(self, number: int) -> None:
        self.waiting_tokens -= self._waiting.pop(number, 0)
        self._running.discard(number)

    def forget(self) -> None:
        """End all requests: their engine is gone."""
        self._waiting.clear()
        self._running.clear()
        self.waiting_tokens, self._loads = 0, None

    def note(self, stats: EngineStats) -> None:
        """Take the engine's numbers, which the share of loads follows from."""
        now_s, loading_s = self._clock.monotonic_s(), sum(times.total_s for times in stats.adapters.load_times)
        last, self._loads = self._loads, (now_s, loading_s)
        if last is not None and now_s > last[0]:
            self.load_share = max(0.0, loading_s - last[1]) / (now_s - last[0])


@dataclass(slots=True)
class Residency:
    """The tier and the bytes of each adapter of a replica, by `AdapterRef.full_id` and source.

    generation  rises with each change; `changed` has the generation of each adapter's last one
    """

    tiers: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    generation: int = 0

    def take(self, infos: tuple[AdapterInfo, ...]) -> None:
        """Take the adapters that the engine knows; all others are in no tier."""
        self.generation += 1
        found = {residency_key(info.source, info.tenant, info.id): info for info in infos}
        for key in self.tiers.keys() - found.keys():
            self._set(key, NO_TIER, 0)
        for key, info in found.items():
            self._set(key, _TIERS.get(info.state, NO_TIER), info.num_bytes)

    def since(self, generation: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return the tiers and sizes that changed after a generation."""
        keys = [key for key, changed in self.changed.items() if changed > generation]
        return (
            {key: self.tiers.get(key, NO_TIER) for key in keys},
            {key: self.sizes[key] for key in keys if key in self.sizes},
        )

    def _set(self, key: str, tier: int, num_bytes: int) -> None:
        if self.tiers.get(key, NO_TIER) == tier:
            return
        self.changed[key] = self.generation
        if tier == NO_TIER:
            self.tiers.pop(key, None)
            self.sizes.pop(key, None)
        else:
            self.tiers[key], self.sizes[key] = tier, num_bytes


def residency_key(source: str, tenant: str, adapter_id: str) -> str:
    """Return the name of an adapter in beats: the same for each version of it."""
    return f"{source}:{tenant}/{adapter_id}" if tenant else f"{source}:{adapter_id}"


def has_moved(before: EngineStats | None, after: EngineStats) -> bool:
    """Return whether an adapter may have changed its tier between two moments."""
    return before is None or _moves(before.adapters) != _moves(after.adapters)


def _moves(stats: StoreStats) -> tuple[int, ...]:
    tiers = (stats.on_device, stats.in_host, stats.on_disk)
    return (stats.loads, stats.answers, stats.evictions, stats.disk_evictions, *tiers)


def load_seconds(times: tuple[LoadTimes, ...]) -> tuple[float, float, float]:
    """Return the mean seconds of loads into the device, the host and the disk; 0 for a tier without a load."""
    return _mean_s(times, "device"), _mean_s(times, "host"), _mean_s(times, "disk")


def _mean_s(times: tuple[LoadTimes, ...], tier: str) -> float:
    own = [each for each in times if each.tier == tier]
    number = sum(sum(each.counts) for each in own)
    return sum(each.total_s for each in own) / number if number else 0.0
