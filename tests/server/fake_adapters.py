"""The adapters of the fake engine: what an operator does to them moves on by one state each time it is looked at.

Names:  `missing…` is not found;  `broken…` fails to load;  `stuck…` never moves on;  `EXIT` kills the process
        `busy…` is in use: it is not evicted, and deleted only after a while;  `huge…` is too large to stay pinned
        any other name is known
"""

import os
from dataclasses import replace

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.errors import AdapterInUse, AdapterNotFound

NEXT = {
    AdapterState.FETCHING: AdapterState.ON_DISK,
    AdapterState.ON_DISK: AdapterState.ON_DEVICE,
}
STAGE_MS = {"fetch": 1.5, "pack": 20.25}


class FakeAdapters:
    """`known` is for tests to look at and to fill."""

    def __init__(self) -> None:
        self.known: dict[AdapterRef, AdapterInfo] = {}
        self.asked: list[tuple[AdapterAction, AdapterRef]] = []
        self.looks = 0
        self.deleted: set[AdapterRef] = set()
        self._ticks_left: dict[AdapterRef, int] = {}
        self._known(AdapterRef(SourceName.LOCAL, "team/tone"))

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        self.asked.append((action, ref))
        if ref.id == "EXIT":
            os._exit(9)
        info = self._known(ref)
        match action:
            case AdapterAction.PRELOAD:
                info = self._loading(info)
            case AdapterAction.PIN:
                info = replace(self._loading(info), is_pinned=True)
            case AdapterAction.UNPIN:
                info = replace(info, is_pinned=False)
            case AdapterAction.EVICT if ref.id.startswith("busy"):
                raise AdapterInUse(f"Adapter '{ref.id}' is in use: 1 requests hold it")
            case AdapterAction.EVICT:
                info = replace(info, state=AdapterState.ABSENT)
            case AdapterAction.DELETE:
                info = replace(info, state=AdapterState.FAILED, is_deleted=True, pins=int(ref.id.startswith("busy")))
            case AdapterAction.VERIFY:
                is_absent = info.state is AdapterState.ABSENT  # the store verifies what is packed only
                info = replace(info, is_verified=None, state=AdapterState.ON_DISK if is_absent else info.state)
                self._ticks_left[ref] = 2
        self.known[ref] = info
        return info

    def info(self, ref: AdapterRef) -> AdapterInfo:
        self.looks += 1
        now = self._known(ref)
        if now.is_deleted and not ref.id.startswith("stuck"):
            if not now.pins:
                del self.known[ref]
                self.deleted.add(ref)
                raise self._missing(ref)
            self.known[ref] = replace(now, pins=0)
        elif not ref.id.startswith("stuck"):
            self.known[ref] = self._moved_on(ref, now)
        return self.known[ref]

    def infos(self) -> tuple[AdapterInfo, ...]:
        return tuple(self.known.values())

    def _known(self, ref: AdapterRef) -> AdapterInfo:
        if ref.id.startswith("missing") or ref in self.deleted:
            raise self._missing(ref)
        unasked = AdapterInfo(id=ref.id, source=ref.source.value, state=AdapterState.ABSENT, tenant=ref.tenant)
        return self.known.setdefault(ref, unasked)

    def _loading(self, info: AdapterInfo) -> AdapterInfo:
        if info.state is AdapterState.ON_DEVICE:
            return info
        return replace(info, state=AdapterState.FETCHING)

    def _moved_on(self, ref: AdapterRef, info: AdapterInfo) -> AdapterInfo:
        if ref in self._ticks_left:
            self._ticks_left[ref] -= 1
            if not self._ticks_left[ref]:
                del self._ticks_left[ref]
                return replace(info, is_verified=not ref.id.startswith("rotten"))
        if ref.id.startswith("broken") and info.state is AdapterState.FETCHING:
            return replace(info, state=AdapterState.FAILED, error=f"Adapter '{ref.id}' cannot be read: told to fail")
        if ref.id.startswith("huge") and info.is_pinned:
            info = replace(info, is_pinned=False, error=f"Adapter '{ref.id}' needs 9 bytes; the limit is 8")
        state = NEXT.get(info.state, info.state)
        if state is not AdapterState.ON_DEVICE:
            return replace(info, state=state)
        return replace(info, state=state, rank=8, num_bytes=4_700_000, digest="ab" * 32, stage_ms=STAGE_MS)

    def _missing(self, ref: AdapterRef) -> AdapterNotFound:
        return AdapterNotFound(f"Adapter '{ref.id}' was not found in source '{ref.source}'")
