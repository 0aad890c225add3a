"""The adapters that requests wait for, or that an operator wants on the device."""

from collections.abc import Iterator

from manylora.adapter_ref import AdapterRef
from manylora.adapters.store.tracked import TrackedAdapter, TrackedAdapters
from manylora.ids import Digest, Flow


class WishList:
    """Wanted adapters, in the order of their first wish.

    A request's wish lapses unless it is repeated before each poll; an operator's and a prefetch are kept until they are
    met or have failed.
    """

    def __init__(self, tracked: TrackedAdapters) -> None:
        self._tracked = tracked
        self._wanted: dict[AdapterRef, TrackedAdapter] = {}
        self._versions: set[Digest] | None = None  # of all of them, once they were needed

    def __len__(self) -> int:
        return len(self._wanted)

    def __iter__(self) -> Iterator[TrackedAdapter]:
        return iter(list(self._wanted.values()))

    def get(self, ref: AdapterRef) -> TrackedAdapter | None:
        """Return the adapter if it is wanted."""
        return self._wanted.get(ref)

    def add(self, adapter: TrackedAdapter, flow: Flow | None, now_s: float) -> bool:
        """Note a request's wish; return whether no request has asked for the adapter lately."""
        is_arrival = not self._tracked.is_requested(adapter)
        if is_arrival:
            adapter.wait_begun(now_s)
        adapter.requested(flow, self._tracked.turn)
        self._wanted.setdefault(adapter.ref, adapter)
        return is_arrival

    def keep(self, adapter: TrackedAdapter) -> None:
        """Note an operator's wish."""
        adapter.keep_wanted()
        self._wanted.setdefault(adapter.ref, adapter)

    def prefetch(self, adapter: TrackedAdapter) -> None:
        """Note a router's wish: the adapter is to be on the disk, and no nearer."""
        adapter.prefetch_begun()
        self._wanted.setdefault(adapter.ref, adapter)

    def is_for_disk(self, adapter: TrackedAdapter) -> bool:
        """Return whether a prefetch alone wants the adapter."""
        return adapter.is_prefetched and not adapter.is_kept_wanted and not self._tracked.is_requested(adapter)

    def drop_kept(self, adapter: TrackedAdapter) -> None:
        """End an operator's wish; those of requests stay."""
        adapter.kept_dropped()
        if not adapter.is_prefetched and not self._tracked.is_requested(adapter):
            self._drop(adapter)

    def drop_requested(self, ref: AdapterRef) -> None:
        """End the wish of requests; an operator's stays."""
        adapter = self._wanted.get(ref)
        if adapter is not None and (adapter.is_kept_wanted or adapter.is_prefetched):
            adapter.request_dropped()
        elif adapter is not None:
            self._drop(adapter)

    def drop_lapsed(self) -> None:
        """End the wishes that were not repeated since the last poll."""
        for adapter in self:
            if adapter.turn < self._tracked.turn and not (adapter.is_kept_wanted or adapter.is_prefetched):
                self._drop(adapter)

    def versions(self) -> set[Digest]:
        """Return the content of all wanted adapters, as of the first call after `versions_changed`."""
        if self._versions is None:
            self._versions = {adapter.digest for adapter in self._wanted.values() if adapter.digest is not None}
        return self._versions

    def versions_changed(self) -> None:
        """Let `versions` look again."""
        self._versions = None

    def _drop(self, adapter: TrackedAdapter) -> None:
        del self._wanted[adapter.ref]
        adapter.unwanted()
