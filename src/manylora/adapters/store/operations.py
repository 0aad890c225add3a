"""The operations of operators on adapters (preload, pin, unpin, evict, delete, verify) and the facts they get."""

from dataclasses import replace
from typing import Any

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.adapters.refusals import Refusals
from manylora.adapters.report import report_from_text
from manylora.adapters.store.erasing import Eraser, is_of
from manylora.adapters.store.operator_pins import OperatorPins
from manylora.adapters.store.tracked import TrackedAdapter, TrackedAdapters
from manylora.adapters.store.verifying import Verifier
from manylora.adapters.store.versions import MAX_REVOKED, AdapterVersions
from manylora.adapters.store.wishes import WishList
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.clock import Clock
from manylora.errors import AdapterCapacity, AdapterNotFound
from manylora.ids import Digest


class Operator:
    """Carries out operations on one adapter at a time, and describes adapters."""

    def __init__(
        self,
        *,
        tracked: TrackedAdapters,
        versions: AdapterVersions,
        device: Device,
        disk: DiskTier,
        clock: Clock,
        wishes: WishList,
        pins: OperatorPins,
        eraser: Eraser,
        verifier: Verifier,
    ) -> None:
        self._tracked = tracked
        self._versions = versions
        self._device = device
        self._disk = disk
        self._clock = clock
        self._wishes = wishes
        self._pins = pins
        self._eraser = eraser
        self._verifier = verifier

    # ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an action. Raises the adapter's failure, or the reason why the action is impossible now."""
        adapter = self._find(ref)
        match action:
            case AdapterAction.PRELOAD:
                self._preload(adapter)
            case AdapterAction.PREFETCH:
                self._prefetch(adapter)
            case AdapterAction.PIN:
                self._pins.pin(adapter)
            case AdapterAction.UNPIN:
                self._pins.unpin(adapter)
            case AdapterAction.EVICT:
                self._evict(adapter)
            case AdapterAction.DELETE:
                self._delete(adapter)
            case AdapterAction.VERIFY:
                self._verify(adapter)
        return self._info(adapter)

    def _find(self, ref: AdapterRef) -> TrackedAdapter:
        """Return the adapter as its source has it now. Raises `AdapterNotFound` and the like if no tier has it."""
        adapter = self._tracked.track(ref)
        self._versions.locate(adapter, self._clock.monotonic_s())
        adapter.ask_again()  # a request that comes now asks the source itself
        failure = self._versions.failure_of(adapter)
        if failure is not None and adapter.located is None and not self._is_anywhere(adapter):
            raise failure
        return adapter

    def _versions_of(self, adapter: TrackedAdapter) -> set[Digest]:
        """Return the versions of an adapter that any tier has, older ones too."""
        current = set() if adapter.digest is None else {adapter.digest}
        return current | self._device.versions(adapter.ref) | self._disk.versions(adapter.ref)

    def _is_anywhere(self, adapter: TrackedAdapter) -> bool:
        is_held = adapter.is_pinned or bool(adapter.draining)
        return adapter.located is not None or is_held or bool(self._versions_of(adapter))

    def _preload(self, adapter: TrackedAdapter) -> None:
        if (failure := self._versions.failure_of(adapter)) is not None:
            raise failure
        if adapter.digest is None or adapter.digest not in self._device:
            self._wishes.keep(adapter)

    def _prefetch(self, adapter: TrackedAdapter) -> None:
        if (failure := self._versions.failure_of(adapter)) is not None:
            raise failure
        if adapter.digest is None:
            self._wishes.prefetch(adapter)

    def _evict(self, adapter: TrackedAdapter) -> None:
        versions, refuse = self._versions_of(adapter), Refusals(adapter.ref.id, adapter.ref.source)
        if adapter.is_pinned:
            raise refuse.in_use("it is pinned; unpin it first")
        if self._tracked.is_requested(adapter):
            raise refuse.in_use("requests wait for it")
        is_read = any(self._device.is_moving(digest) or self._verifier.is_reading(digest) for digest in versions)
        if adapter.job is not None or is_read:
            raise refuse.in_use("it is being read")
        if held := [digest for digest in versions if self._device.is_held(digest)]:
            requests = sum(self._pins.requests_hold(digest) for digest in held)
            raise refuse.in_use(f"{requests} requests hold it" if requests else "it is pinned under another name")
        if adapter.is_kept_wanted:
            self._wishes.drop_kept(adapter)
        adapter.prefetch_ended()
        for digest in versions:
            self._device.remove(digest)
            self._disk.remove(digest)

    def _delete(self, adapter: TrackedAdapter) -> None:
        if not self._versions.may_revoke:
            raise AdapterCapacity(
                f"Adapter '{adapter.ref.id}' cannot be deleted: {MAX_REVOKED} deleted ones are remembered"
            )
        for other in self._pins.pinned():
            if is_of(other.ref, str(adapter.ref)):
                self._pins.unpin(other)
        self._eraser.delete(adapter)

    def _verify(self, adapter: TrackedAdapter) -> None:
        if adapter.digest is None or self._disk.facts(adapter.digest) is None:
            raise AdapterNotFound(f"Adapter '{adapter.ref.id}' has no packed image on disk to verify")
        self._verifier.verify(adapter.digest)

    # ── facts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """Describe one adapter. Raises `AdapterNotFound` if its source does not know it and no tier has it."""
        adapter = self._find(ref)
        return replace(self._info(adapter), report=self._report(adapter))

    def _report(self, adapter: TrackedAdapter) -> dict[str, Any] | None:  # JSON values of several types
        if adapter.located is None:
            return None
        report = report_from_text(self._disk.report(self._disk.name_key(adapter.ref, adapter.located.stamp)))
        return None if report is None else report.to_json()

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Describe every tracked adapter that is anywhere or fails, by source and id."""
        known = [adapter for adapter in self._tracked if self._is_listed(adapter)]
        known.sort(key=lambda adapter: (adapter.ref.source, adapter.ref.id, adapter.ref.tenant))
        return tuple(self._info(adapter) for adapter in known)

    def _is_listed(self, adapter: TrackedAdapter) -> bool:
        failure = self._versions.failure_of(adapter)
        if adapter.located is not None or adapter.is_pinned or adapter.draining:
            return True
        return failure is not None and not isinstance(failure, AdapterNotFound)

    def _info(self, adapter: TrackedAdapter) -> AdapterInfo:
        digest, failure = adapter.digest, self._versions.failure_of(adapter)
        held = adapter.draining | ({digest} if digest else set())
        used_s = adapter.last_use_s
        is_here = digest is not None and digest in self._device
        return AdapterInfo(
            id=adapter.ref.id,
            source=adapter.ref.source.value,
            state=adapter.state,
            digest=digest or "",
            rank=self._device.rank(digest) if digest and is_here else adapter.rank,
            num_bytes=0 if digest is None else self._pins.num_bytes(digest),
            pins=sum(self._pins.requests_hold(version) for version in held),
            is_pinned=adapter.is_pinned,
            is_deleted=adapter.is_deleted,
            hits=adapter.hits,
            last_use_s=None if used_s is None else self._clock.monotonic_s() - used_s,
            stage_ms=dict(adapter.stage_ms),
            is_verified=adapter.is_verified,
            tenant=adapter.ref.tenant,
            error=adapter.pin_error if failure is None else failure.message,
        )
