"""The pins of operators and of the configuration: adapters that stay on the device whether or not requests use them."""

import logging

from manylora.adapter_ref import AdapterRef
from manylora.adapters.refusals import Refusals
from manylora.adapters.store.tracked import TrackedAdapter
from manylora.adapters.store.versions import AdapterVersions
from manylora.adapters.store.wishes import WishList
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.errors import AdapterCapacity, ManyloraError
from manylora.ids import Digest

MAX_PINS = 256
LOOK_S = 1.0
"""Interval at which the sources of pinned adapters are asked for a new version."""

log = logging.getLogger(__name__)


class OperatorPins:
    """Adapters that operators have pinned. A pin follows its name: it moves to a new version once that is packed.

    Pinned adapters take three quarters of the bank's own bytes at most, so that others always have room to take turns.
    """

    def __init__(self, *, versions: AdapterVersions, device: Device, disk: DiskTier, wishes: WishList) -> None:
        self._versions = versions
        self._device = device
        self._disk = disk
        self._wishes = wishes
        self._pinned: dict[AdapterRef, TrackedAdapter] = {}
        self._looked_s = float("-inf")

    def __len__(self) -> int:
        return len(self._pinned)

    @property
    def num_held(self) -> int:
        """Versions that pins hold on the device now."""
        return len({adapter.held for adapter in self._pinned.values()} - {None})

    def holds(self, digest: Digest) -> int:
        """Return the number of pins that hold a version on the device."""
        return sum(adapter.held == digest for adapter in self._pinned.values())

    def requests_hold(self, digest: Digest) -> int:
        """Return the number of requests that hold a version on the device."""
        pins = self._device.pins(digest)
        return pins - self.holds(digest) if pins else 0

    def bytes_beside(self, *digests: Digest) -> int:
        """Return the bytes of all versions that are pinned, or will be once they are packed, without `digests`."""
        if not self._pinned:
            return 0
        versions = {adapter.digest or adapter.held for adapter in self._pinned.values()} - {*digests}
        return sum(self.num_bytes(version) for version in versions if version is not None)

    def num_bytes(self, digest: Digest) -> int:
        """Return the true bytes of a version in any tier; 0 if it is in none."""
        if digest in self._device:
            return self._device.num_bytes(digest)
        facts = self._device.image_facts(digest)
        return 0 if facts is None else facts.body_bytes

    def pin(self, adapter: TrackedAdapter) -> None:
        """Pin an adapter. Raises its failure, or `AdapterCapacity` or `AdapterTooLarge` if others get too little."""
        if adapter.is_pinned:
            return
        if (failure := self._versions.failure_of(adapter)) is not None:
            raise failure
        if len(self._pinned) >= MAX_PINS:
            raise AdapterCapacity(
                f"Adapter '{adapter.ref.id}' cannot be pinned: {MAX_PINS} adapters are pinned already"
            )
        if adapter.digest is not None and (objection := self._objection(adapter.ref, adapter.digest)) is not None:
            raise objection
        adapter.pinned()
        self._pinned[adapter.ref] = adapter
        self._follow(adapter)

    def unpin(self, adapter: TrackedAdapter, why: str = "") -> None:
        """End a pin, and the wish that came with it; `why` says so if it is given up."""
        if not adapter.is_pinned:
            return
        adapter.unpinned(why)
        del self._pinned[adapter.ref]
        if adapter.is_kept_wanted:
            self._wishes.drop_kept(adapter)
        self._release(adapter)

    def pinned(self) -> list[TrackedAdapter]:
        """Return the pinned adapters."""
        return list(self._pinned.values())

    def release_all(self, digest: Digest) -> None:
        """Take the hold of all pins off a version; the pins stay, and hold the next version."""
        for adapter in self._pinned.values():
            if adapter.held == digest:
                self._release(adapter)

    def follow_versions(self, now_s: float) -> None:
        """Let every pin follow its name to the version there is now; called with each poll."""
        if is_due := bool(self._pinned) and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
        for adapter in self.pinned():
            if is_due:
                self._versions.locate(adapter, now_s)
                adapter.ask_again()  # a request that comes now asks the source itself
            self._follow(adapter)

    def _follow(self, adapter: TrackedAdapter) -> None:
        is_other = adapter.held != adapter.digest and (adapter.digest is not None or adapter.located is None)
        if adapter.held is not None and is_other:
            self._release(adapter)  # new requests do not get that version, and the new one needs room
        is_held = adapter.held is not None and adapter.held == adapter.digest
        if is_held or self._versions.failure_of(adapter) is not None:
            return
        if adapter.digest is not None and (objection := self._objection(adapter.ref, adapter.digest)) is not None:
            # Its size was not known when the pin was taken, or its new version is larger.
            self.unpin(adapter, objection.message)
            log.warning("adapter.pin_given_up adapter=%s error=%s", adapter.ref, objection.message)
        elif adapter.digest is not None and adapter.digest in self._device:
            self._device.hold(adapter.digest)
            adapter.held_on_device(adapter.digest)
        elif not adapter.is_kept_wanted:
            self._wishes.keep(adapter)

    def _release(self, adapter: TrackedAdapter) -> None:
        if adapter.held is not None:
            self._device.release(adapter.held)
            adapter.released()

    def _objection(self, ref: AdapterRef, digest: Digest) -> ManyloraError | None:
        """Return the reason why a version cannot be pinned beside the others, if there is one."""
        num_bytes, limit_bytes = self.num_bytes(digest), self._device.own_bytes * 3 // 4
        taken_bytes = self.bytes_beside(digest)
        if num_bytes > limit_bytes:
            return Refusals(ref.id, ref.source).too_large(num_bytes, limit_bytes)
        if taken_bytes + num_bytes > limit_bytes:
            return AdapterCapacity(
                f"Adapter '{ref.id}' needs {num_bytes} bytes to be pinned; others have {taken_bytes} of {limit_bytes}"
            )
        return None
