"""What operators ask of the store: adapters brought, pinned, taken away; and what they are told of each."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.adapters.refusals import Refusals
from manylora.adapters.report import report_from_text
from manylora.adapters.store.erasing import Eraser, is_of
from manylora.adapters.store.verifying import Verifier
from manylora.adapters.store.versions import MAX_REVOKED, AdapterVersions
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tracked import TrackedAdapter
from manylora.clock import Clock
from manylora.errors import AdapterCapacity, AdapterNotFound, ManyloraError
from manylora.ids import Digest

MAX_PINS = 256
LOOK_S = 1.0
"""How often the sources of pinned adapters are asked for a new version."""

log = logging.getLogger(__name__)


class Wishes(NamedTuple):
    """What the state machine does for an operator: keep a name wanted, and tell where it is."""

    keep_wanted: Callable[[TrackedAdapter], None]
    drop_kept: Callable[[TrackedAdapter], None]
    state_of: Callable[[TrackedAdapter], AdapterState]


class Operator:
    """Carries out what operators ask. A pin follows its name: it moves to a new version as soon as that is packed.

    Pinned adapters have three quarters of the bank's own bytes at most, so that there is always room for others to
    take turns in.
    """

    def __init__(
        self,
        *,
        names: AdapterVersions,
        device: Device,
        disk: DiskTier,
        clock: Clock,
        wishes: Wishes,
        eraser: Eraser,
        verifier: Verifier,
    ) -> None:
        self._names = names
        self._device = device
        self._disk = disk
        self._clock = clock
        self._wishes = wishes
        self._eraser = eraser
        self._verifier = verifier
        self._pinned: dict[AdapterRef, TrackedAdapter] = {}
        self._looked_s = float("-inf")

    # ── actions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an action. Raises what stands against the adapter, or why this cannot be done to it now."""
        name = self._find(ref)
        match action:
            case AdapterAction.PRELOAD:
                self._preload(name)
            case AdapterAction.PIN:
                self._pin(name)
            case AdapterAction.UNPIN:
                self._unpin(name)
            case AdapterAction.EVICT:
                self._evict(name)
            case AdapterAction.DELETE:
                self._delete(name)
            case AdapterAction.VERIFY:
                self._verify(name)
        return self._info(name)

    def _find(self, ref: AdapterRef) -> TrackedAdapter:
        """The name as its source has it now. Raises `AdapterNotFound` and the like if nothing of it is anywhere."""
        name = self._names.of(ref)
        self._names.locate(name, self._clock.monotonic_s())
        name.located_s = float("-inf")  # a request that comes now looks for itself
        failure = self._names.standing_failure(name)
        if failure is not None and name.located is None and not self._is_anywhere(name):
            raise failure
        return name

    def _versions(self, name: TrackedAdapter) -> set[Digest]:
        """Whatever of a name is on the device or on disk, older versions too."""
        current = set() if name.digest is None else {name.digest}
        return current | self._device.versions(name.ref) | self._disk.versions(name.ref)

    def _is_anywhere(self, name: TrackedAdapter) -> bool:
        is_held = name.is_pinned or bool(name.draining)
        return name.located is not None or is_held or bool(self._versions(name))

    def _preload(self, name: TrackedAdapter) -> None:
        if (failure := self._names.standing_failure(name)) is not None:
            raise failure
        if name.digest is None or name.digest not in self._device:
            self._wishes.keep_wanted(name)

    def _evict(self, name: TrackedAdapter) -> None:
        versions, refuse = self._versions(name), Refusals(name.ref.id, name.ref.source)
        if name.is_pinned:
            raise refuse.in_use("it is pinned; unpin it first")
        if self._names.is_requested(name):
            raise refuse.in_use("requests wait for it")
        is_read = any(self._device.is_reading(digest) or self._verifier.is_reading(digest) for digest in versions)
        if name.job is not None or is_read:
            raise refuse.in_use("it is being read")
        if held := [digest for digest in versions if digest in self._device and self._device.is_held(digest)]:
            pins = sum(self._device.pins(digest) for digest in held)
            raise refuse.in_use(f"{pins} requests hold it" if pins else "it is pinned under another name")
        if name.is_kept_wanted:
            self._wishes.drop_kept(name)
        for digest in versions:
            if digest in self._device:
                self._device.evict(digest)
            self._disk.remove(digest)

    def _delete(self, name: TrackedAdapter) -> None:
        if not self._names.may_revoke:
            raise AdapterCapacity(
                f"Adapter '{name.ref.id}' cannot be deleted: {MAX_REVOKED} deleted ones are remembered"
            )
        for other in [other for other in self._pinned.values() if is_of(other.ref, str(name.ref))]:
            self._unpin(other)
        self._eraser.delete(name)

    def _verify(self, name: TrackedAdapter) -> None:
        if name.digest is None or self._disk.facts(name.digest) is None:
            raise AdapterNotFound(f"Adapter '{name.ref.id}' has no packed image on disk to verify")
        self._verifier.verify(name.digest)

    # ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_pinned(self) -> int:
        """Adapters that are kept on the device now."""
        return len({name.held for name in self._pinned.values()} - {None})

    def bytes_beside(self, digest: Digest) -> int:
        """Bytes that are pinned, or will be, without those of one version."""
        if not self._pinned:
            return 0
        versions = {name.digest or name.held for name in self._pinned.values()} - {digest}
        return sum(self._num_bytes(version) for version in versions if version is not None)

    def _pin(self, name: TrackedAdapter) -> None:
        if name.is_pinned:
            return
        if (failure := self._names.standing_failure(name)) is not None:
            raise failure
        if len(self._pinned) >= MAX_PINS:
            raise AdapterCapacity(f"Adapter '{name.ref.id}' cannot be pinned: {MAX_PINS} adapters are pinned already")
        if name.digest is not None and (objection := self._objection(name.ref, name.digest)) is not None:
            raise objection
        name.is_pinned, name.pin_error = True, ""
        self._pinned[name.ref] = name
        self._follow(name)

    def _unpin(self, name: TrackedAdapter) -> None:
        if not name.is_pinned:
            return
        name.is_pinned = False
        del self._pinned[name.ref]
        if name.is_kept_wanted:
            self._wishes.drop_kept(name)
        self._release(name)

    def _release(self, name: TrackedAdapter) -> None:
        if name.held is not None:
            self._device.release(name.held)
            name.held = None

    def _objection(self, ref: AdapterRef, digest: Digest) -> ManyloraError | None:
        """Why a version cannot be pinned beside what is pinned already."""
        num_bytes, limit_bytes = self._num_bytes(digest), self._device.own_bytes * 3 // 4
        taken_bytes = self.bytes_beside(digest)
        if num_bytes > limit_bytes:
            return Refusals(ref.id, ref.source).too_large(num_bytes, limit_bytes)
        if taken_bytes + num_bytes > limit_bytes:
            return AdapterCapacity(
                f"Adapter '{ref.id}' needs {num_bytes} bytes to be pinned; others have {taken_bytes} of {limit_bytes}"
            )
        return None

    def _num_bytes(self, digest: Digest) -> int:
        facts = self._disk.facts(digest)
        if facts is not None:
            return facts.body_bytes
        return self._device.num_bytes(digest) if digest in self._device else 0

    def follow_versions(self, now_s: float) -> None:
        """Let every pin follow its name to the version there is now; called with each poll."""
        if is_due := bool(self._pinned) and now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
        for name in list(self._pinned.values()):
            if is_due:
                self._names.locate(name, now_s)
                name.located_s = float("-inf")  # a request that comes now looks for itself
            self._follow(name)

    def _follow(self, name: TrackedAdapter) -> None:
        is_other = name.held != name.digest and (name.digest is not None or name.located is None)
        if name.held is not None and is_other:
            self._release(name)  # nobody gets that version any more, and the new one needs room
        if (name.held is not None and name.held == name.digest) or self._names.standing_failure(name) is not None:
            return
        if name.digest is not None and (objection := self._objection(name.ref, name.digest)) is not None:
            # Its size was not known when the pin was taken, or its new version is larger.
            self._unpin(name)
            name.pin_error = objection.message
            log.warning("adapter.pin_given_up adapter=%s error=%s", name.ref, objection.message)
        elif name.digest is not None and name.digest in self._device:
            self._device.hold(name.digest)
            name.held = name.digest
        elif not name.is_kept_wanted:
            self._wishes.keep_wanted(name)

    # ── what they are told ───────────────────────────────────────────────────────────────────────────────────────

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """One adapter. Raises `AdapterNotFound` if its source does not know it and nothing of it is here."""
        name = self._find(ref)
        return replace(self._info(name), report=self._report(name))

    def _report(self, name: TrackedAdapter) -> dict[str, Any] | None:  # JSON values of several types
        if name.located is None:
            return None
        report = report_from_text(self._disk.report(self._disk.name_key(name.ref, name.located.stamp)))
        return None if report is None else report.to_json()

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter that was asked for lately and is anywhere, by source and id."""
        known = [name for name in self._names if self._is_worth_telling(name)]
        known.sort(key=lambda name: (name.ref.source, name.ref.id, name.ref.tenant))
        return tuple(self._info(name) for name in known)

    def _is_worth_telling(self, name: TrackedAdapter) -> bool:
        failure = self._names.standing_failure(name)
        if name.located is None:
            return (
                name.is_pinned or bool(name.draining) or not (failure is None or isinstance(failure, AdapterNotFound))
            )
        return True

    def _info(self, name: TrackedAdapter) -> AdapterInfo:
        digest, failure = name.digest, self._names.standing_failure(name)
        if digest is not None and digest in self._device:
            name.rank = self._device.rank(digest)
        return AdapterInfo(
            id=name.ref.id,
            source=name.ref.source.value,
            state=self._wishes.state_of(name),
            digest=digest or "",
            rank=name.rank,
            num_bytes=0 if digest is None else self._num_bytes(digest),
            pins=sum(self._device.pins(version) for version in name.draining | ({digest} if digest else set())),
            is_pinned=name.is_pinned,
            is_deleted=name.is_deleted,
            hits=name.hits,
            last_use_s=None if name.last_use_s is None else self._clock.monotonic_s() - name.last_use_s,
            stage_ms=dict(name.stage_ms),
            is_verified=name.is_verified,
            tenant=name.ref.tenant,
            error=name.pin_error if failure is None else failure.message,
        )
