"""The compiled grammars: each is held by the flows that use it or have used it, within a quota of each flow."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from manylora.clock import Clock
from manylora.ids import Flow

MAX_KEPT = 512
"""Limit on the compiled grammars of all flows together, but those in use."""
MAX_KEPT_BYTES = 128 << 20
"""Limit on the memory of these."""
TRIM_S = 1.0
"""Seconds between two looks for grammars that are too old."""

Key = TypeVar("Key", bound=Hashable)
Grammar = TypeVar("Grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarQuota:
    """Limits on the compiled grammars of one flow.

    count, num_bytes  of one flow; a grammar that several flows hold counts in full for each
    ttl_s             seconds since the flow's last request with a grammar, after which it holds that grammar no more
    """

    count: int = 256
    num_bytes: int = 64 << 20
    ttl_s: float = 600.0


class KeptGrammars(Generic[Key, Grammar]):
    """Compiled grammars by their keys. A flow holds those that it has used last; one that no flow holds is dropped.

    A flow over its quota loses the one that it used longest ago, and none that it uses now: a flow whose grammars in
    use fill its quota gets no further one. While all flows together hold too much, the one that holds most loses one,
    but none that holds no more than an equal share: a flow with many grammars takes none from one with few. A closed
    flow has a quota of nothing.
    """

    def __init__(self, quota: GrammarQuota, clock: Clock) -> None:
        self._quota = quota
        self._clock = clock
        self._grammars: dict[Key, Grammar] = {}
        self._bytes: dict[Key, int] = {}
        self._num_holders: Counter[Key] = Counter()
        self._holdings: dict[Flow, OrderedDict[Key, float]] = {}  # when each was used last, longest ago first
        self._held_bytes: Counter[Flow] = Counter()
        self._uses: Counter[tuple[Key, Flow]] = Counter()
        self._num_used: Counter[Flow] = Counter()  # of the grammars that a flow holds, those in use
        self._used_bytes: Counter[Flow] = Counter()
        self._closed: set[Flow] = set()  # for ever, as tenants are closed: a late grammar of such a flow goes, too
        self._next_trim_s = 0.0
        self.num_bytes = 0  # of all grammars, each counted once
        self.dropped: Counter[str] = Counter()  # grammars that a flow lost, by reason

    def __len__(self) -> int:
        return len(self._grammars)

    def __contains__(self, key: Key) -> bool:
        return key in self._grammars

    def __getitem__(self, key: Key) -> Grammar:
        return self._grammars[key]

    @property
    def has_uses(self) -> bool:
        """Return whether a flow uses a grammar, kept or not."""
        return bool(self._uses)

    def held(self, flow: Flow) -> tuple[Key, ...]:
        """Return the keys of the grammars that a flow holds, the one used longest ago first."""
        return tuple(self._holdings.get(flow, ()))

    def is_full(self, flow: Flow, count: int = 0) -> bool:
        """Return whether the grammars that a flow uses now, and `count` further ones, fill its quota."""
        return self._num_used[flow] + count >= self._quota.count or self._used_bytes[flow] >= self._quota.num_bytes

    def begin(self, key: Key, flow: Flow) -> None:
        """Note one more use of a grammar by a flow, whether it is kept or not."""
        self._uses[key, flow] += 1
        if self._uses[key, flow] == 1 and key in self._holdings.get(flow, ()):
            self._count_used(key, flow, 1)

    def end(self, key: Key, flow: Flow) -> None:
        """Note the end of one use, and drop what is beyond the limits then."""
        self._uses[key, flow] -= 1
        if self._uses[key, flow]:
            return
        del self._uses[key, flow]
        if key in self._holdings.get(flow, ()):
            self._count_used(key, flow, -1)
        self._trim_flow(flow)
        self._trim_all()

    def add(self, key: Key, grammar: Grammar, num_bytes: int, flows: Iterable[Flow]) -> None:
        """Keep a new grammar for flows, one or more."""
        self._grammars[key], self._bytes[key] = grammar, num_bytes
        self.num_bytes += num_bytes
        holders = tuple(flows)
        for flow in holders:
            self._hold(key, flow)
        for flow in holders:
            self._trim_flow(flow)
        self._trim_all()

    def use(self, key: Key, flow: Flow) -> Grammar | None:
        """Return a kept grammar, which the flow holds from now on. None: it is not kept, or the flow is full."""
        found = self._grammars.get(key)
        if found is None or (key not in self._holdings.get(flow, ()) and self.is_full(flow)):
            return None
        self._hold(key, flow)
        self._trim_flow(flow)
        return found

    def close_flow(self, flow: Flow) -> None:
        """Drop the grammars of a flow whose tenant is closed: now, or at the end of their use."""
        self._closed.add(flow)
        self._trim_flow(flow)

    def trim_old(self) -> None:
        """Drop what no request has used for too long; looks about once a second."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_trim_s:
            return
        self._next_trim_s = now_s + TRIM_S
        for flow, held in list(self._holdings.items()):
            for key, used_s in list(held.items()):
                if now_s - used_s < self._quota.ttl_s:
                    break
                if not self._uses[key, flow]:
                    self._release(flow, key, "age")

    def _hold(self, key: Key, flow: Flow) -> None:
        held = self._holdings.setdefault(flow, OrderedDict())
        if key not in held:
            self._num_holders[key] += 1
            self._held_bytes[flow] += self._bytes[key]
            if self._uses[key, flow]:
                self._count_used(key, flow, 1)
        held[key] = self._clock.monotonic_s()
        held.move_to_end(key)

    def _count_used(self, key: Key, flow: Flow, count: int) -> None:
        self._num_used[flow] += count
        self._used_bytes[flow] += count * self._bytes[key]
        if not self._num_used[flow]:
            del self._num_used[flow], self._used_bytes[flow]

    def _trim_flow(self, flow: Flow) -> None:
        reason = "closed" if flow in self._closed else "quota"
        while self._is_over(flow) and self._release_oldest(flow, reason):
            pass

    def _is_over(self, flow: Flow) -> bool:
        count, num_bytes = len(self._holdings.get(flow, ())), self._held_bytes[flow]
        return flow in self._closed or count > self._quota.count or num_bytes > self._quota.num_bytes

    def _trim_all(self) -> None:
        while len(self._grammars) > MAX_KEPT and self._release_of_most(
            lambda flow: len(self._holdings[flow]), MAX_KEPT
        ):
            pass
        while self.num_bytes > MAX_KEPT_BYTES and self._release_of_most(
            lambda flow: self._held_bytes[flow], MAX_KEPT_BYTES
        ):
            pass

    def _release_of_most(self, amount: Callable[[Flow], int], limit: int) -> bool:
        """Take a grammar from the flow that holds most and has an unused one; return whether there was one."""
        share = limit / len(self._holdings)
        most = sorted((flow for flow in self._holdings if amount(flow) > share), key=amount, reverse=True)
        return any(self._release_oldest(flow, "room") for flow in most)

    def _release_oldest(self, flow: Flow, reason: str) -> bool:
        oldest = next((key for key in self._holdings.get(flow, ()) if not self._uses[key, flow]), None)
        if oldest is None:
            return False
        self._release(flow, oldest, reason)
        return True

    def _release(self, flow: Flow, key: Key, reason: str) -> None:
        held = self._holdings[flow]
        del held[key]
        self._held_bytes[flow] -= self._bytes[key]
        if not held:
            del self._holdings[flow], self._held_bytes[flow]
        self.dropped[reason] += 1
        self._num_holders[key] -= 1
        if not self._num_holders[key]:
            self.num_bytes -= self._bytes[key]
            del self._grammars[key], self._bytes[key], self._num_holders[key]
