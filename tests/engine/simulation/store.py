"""The simulated store: adapters without weights, whose loads take polls."""

from dataclasses import dataclass, field

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import NO_WORDS, AdapterAction, AdapterHandle, AdapterInfo, AdapterWords
from manylora.engine.adapter_port import AdapterState, StoreStats
from manylora.errors import AdapterCorrupt, ManyloraError
from manylora.ids import Digest, Flow


@dataclass
class SimulatedStore:
    """Stands in for the adapter store: loads take `polls_to_load` polls, the bank holds `capacity` adapters."""

    capacity: int = 4
    polls_to_load: int = 2
    failing: set[str] = field(default_factory=set)
    resident: dict[AdapterRef, AdapterHandle] = field(default_factory=dict)
    pins: dict[str, int] = field(default_factory=dict)
    loading: dict[AdapterRef, int] = field(default_factory=dict)
    host: set[AdapterRef] = field(default_factory=set)
    failed: dict[AdapterRef, ManyloraError] = field(default_factory=dict)
    version: int = 0

    def want(self, ref: AdapterRef, flow: Flow | None = None) -> AdapterState:
        if ref in self.failed:
            return AdapterState.FAILED
        if ref in self.resident:
            return AdapterState.ON_DEVICE
        if ref in self.host:
            return AdapterState.IN_HOST
        if ref not in self.loading:
            self.loading[ref] = self.polls_to_load
            return AdapterState.ABSENT
        return AdapterState.FETCHING

    def poll(self) -> None:
        for ref in list(self.loading):
            self.loading[ref] -= 1
            if self.loading[ref] <= 0:
                del self.loading[ref]
                if ref.id in self.failing:
                    self.failed[ref] = AdapterCorrupt(f"Adapter '{ref.id}' cannot be read: it is broken")
                else:
                    self.host.add(ref)

    def pin(self, ref: AdapterRef) -> AdapterHandle | None:
        if ref not in self.resident:
            if ref not in self.host or not self._make_room():
                return None
            digest = Digest(f"{ref.id}@{self.version}")
            self.resident[ref] = AdapterHandle(ref=ref, digest=digest)
        placed = self.resident[ref]
        self.pins[placed.digest] = self.pins.get(placed.digest, 0) + 1
        return placed

    def _make_room(self) -> bool:
        while len(self.resident) >= self.capacity:
            idle = [ref for ref, placed in self.resident.items() if not self.pins.get(placed.digest)]
            if not idle:
                return False
            del self.resident[idle[0]]
        return True

    def unpin(self, placed: AdapterHandle, *, was_used: bool = True) -> None:
        self.pins[placed.digest] -= 1
        assert self.pins[placed.digest] >= 0, "unpinned more often than pinned"

    def suspect(self, placed: AdapterHandle) -> None:
        pass

    def text(self, ref: AdapterRef) -> AdapterWords | None:
        return NO_WORDS

    def text_digest(self, ref: AdapterRef) -> str:
        return ""

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        return self.failed.get(ref)

    def lacks_room(self, ref: AdapterRef) -> bool:
        return False  # what is loaded here is in host memory

    def joint_failure(self, refs: object) -> None:
        pass  # adapters here have no size

    def unwant(self, ref: AdapterRef) -> None:
        pass  # its loads go on without waiters

    def begun(self) -> list[tuple[AdapterRef, int]]:
        return []

    def give_back(self, num_bytes: int) -> bool:
        return False  # nothing was lent

    @property
    def is_busy(self) -> bool:
        return bool(self.loading)

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return self.info(ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        state = AdapterState.ON_DEVICE if ref in self.resident else AdapterState.ABSENT
        return AdapterInfo(id=ref.id, source=ref.source.value, state=state)

    def infos(self) -> tuple[AdapterInfo, ...]:
        return tuple(self.info(ref) for ref in self.resident)

    def close(self) -> None:
        self.loading.clear()

    def stats(self) -> StoreStats:
        return StoreStats(
            bank_bytes_total=self.capacity,
            bank_bytes_used=len(self.resident),
            host_bytes_used=0,
            disk_bytes_used=0,
            on_device=len(self.resident),
            in_host=len(self.host),
            on_disk=0,
            loads=0,
            failures=len(self.failed),
            evictions=0,
        )
