"""The way of wanted adapters to the device: each poll takes every one of them the next step that there is room for."""

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterState
from manylora.adapters.refusals import Refusals
from manylora.adapters.store.loads import Loads
from manylora.adapters.store.operator_pins import OperatorPins
from manylora.adapters.store.tracked import TrackedAdapter
from manylora.adapters.store.verifying import Verifier
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.store.wishes import WishList
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.room_cache import RoomCache
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterCapacity
from manylora.ids import Digest

PATIENCE_S = 0.5
"""A request that waits for less than this does not evict versions that other requests want."""


class Ascent:
    """Takes wanted adapters from their sources to the device.

    begun  loads and reads from disk that the last poll began, with the bytes of their file or image
    """

    def __init__(
        self,
        *,
        model: str,
        versions: AdapterVersions,
        wishes: WishList,
        loads: Loads,
        device: Device,
        pins: OperatorPins,
        verifier: Verifier,
        config: AdaptersConfig,
    ) -> None:
        self._model = model
        self._versions = versions
        self._wishes = wishes
        self._loads = loads
        self._device = device
        self._pins = pins
        self._verifier = verifier
        self._config = config
        self.begun: list[tuple[AdapterRef, int]] = []
        self._room_caches = {tier: RoomCache() for tier in (AdapterState.IN_HOST, AdapterState.ON_DEVICE)}

    def advance(self, now_s: float) -> None:
        """Take every wanted adapter the next step, in the order of their first wish."""
        for cache in self._room_caches.values():
            cache.clear()
        self._wishes.versions_changed()
        for adapter in self._wishes:
            self._advance(adapter, now_s)

    def _advance(self, adapter: TrackedAdapter, now_s: float) -> None:
        adapter.room_looked_for(is_found=True)
        if adapter.located is None and adapter.ref.merge is not None:
            self._versions.locate(adapter, now_s)  # the sources of its members may have answered
            self._wishes.versions_changed()
        if self._versions.failure_of(adapter) is not None or adapter.located is None:
            return  # `give_up_stuck_searches` ends a search that takes too long
        digest = adapter.digest
        is_moving = digest is not None and self._device.is_moving(digest)
        if digest is not None and adapter.tier is AdapterState.ABSENT and not is_moving:
            adapter.version_forgotten()
            digest = None
        if digest is not None and self._wishes.is_for_disk(adapter):
            adapter.wait_ended()
            adapter.prefetch_ended()  # its wish lapses with the next poll, and no room on the device was made for it
            return
        if adapter.tier is AdapterState.ON_DEVICE:
            adapter.wait_ended()
            adapter.kept_dropped()
            adapter.prefetch_ended()
            return
        waited_s = self._waited_s(adapter, now_s)
        # A full device is back-pressure: the engine's queue decides how long that may last.
        if waited_s >= self._config.load_timeout_s and (digest is None or is_moving):
            self._time_out(adapter, now_s)
        elif digest is not None:
            self._begin_hop(adapter, digest, now_s)
        elif adapter.job is None and self._loads.begin(adapter, adapter.located, now_s):
            self.begun.append((adapter.ref, adapter.located.weights_bytes))

    def _waited_s(self, adapter: TrackedAdapter, now_s: float) -> float:
        """Return how long the adapter has been waited for; a wait that has no begin begins now."""
        if adapter.since_s is None:
            adapter.wait_begun(now_s)
            return 0.0
        return now_s - adapter.since_s

    def _time_out(self, adapter: TrackedAdapter, now_s: float) -> None:
        if adapter.digest is None and adapter.job is None:  # it never came to its turn
            self._versions.fail(adapter, AdapterCapacity("Model is overloaded"), now_s)
        else:
            self._loads.time_out(adapter, now_s)

    def _begin_hop(self, adapter: TrackedAdapter, digest: Digest, now_s: float) -> None:
        if self._device.is_moving(digest) or self._verifier.is_reading(digest):
            return
        facts = self._device.image_facts(digest)
        assert facts is not None  # `_advance` has checked that a tier has it
        spared, is_patient = self.spared(adapter, now_s)
        room_cache = self._room_caches[self._device.next_tier(digest)]
        # Larger ones are not looked up: they may be too large beside the pins, which is an error of its own.
        is_small = facts.body_bytes <= self._device.own_bytes // 4
        if is_small and room_cache.has_refused(adapter.flow, facts.body_bytes, is_patient=is_patient):
            adapter.room_looked_for(is_found=False)
            return
        # Lent memory may be called back while a request waits for it, and pinned versions are never evicted.
        limit_bytes = min(self._device.own_bytes - self._pins.bytes_beside(digest), self._device.limit_bytes(digest))
        if facts.body_bytes > limit_bytes:
            refuse = Refusals(adapter.ref.id, adapter.ref.source, self._model)
            self._versions.fail(adapter, refuse.too_large(facts.body_bytes, limit_bytes), now_s)
        elif self._device.begin_hop(adapter.ref, adapter.flow, facts, spared, is_patient):
            if adapter.tier is AdapterState.ON_DISK:  # a copy from host memory costs no flow anything
                self.begun.append((adapter.ref, facts.body_bytes))
            adapter.wait_begun(now_s)
        else:
            adapter.room_looked_for(is_found=False)
            room_cache.note_refusal(adapter.flow, facts.body_bytes, is_patient=is_patient)

    def spared(self, adapter: TrackedAdapter, now_s: float) -> tuple[set[Digest], bool]:
        """Return the versions that must not be evicted for an adapter, and whether it has not waited `PATIENCE_S` yet.

        Before that time these are all versions that others want; afterwards only those that arrived less than
        `FRESH_S` ago and were not pinned yet. Otherwise two adapters could evict each other for ever.
        """
        is_patient = adapter.since_s is None or now_s - adapter.since_s < PATIENCE_S
        wanted = self._wishes.versions()
        return wanted if is_patient else wanted & self._device.fresh, is_patient
