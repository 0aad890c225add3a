"""The adapter store: brings wanted adapters to the device, and keeps them there while requests hold them.

`tracked.py` has the states of an adapter, `ascent.py` the way of a wanted adapter to the device.
"""

import itertools
from collections.abc import Container, Mapping, Sequence

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterInfo, AdapterState, AdapterWords, StoreStats
from manylora.adapters.banks.bank import Bank, Lender
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.jobs import Found, Ingest
from manylora.adapters.refusals import jointly_too_large
from manylora.adapters.sources.source import Source
from manylora.adapters.store.ascent import Ascent
from manylora.adapters.store.erasing import Eraser
from manylora.adapters.store.loads import Loads
from manylora.adapters.store.operations import Operator
from manylora.adapters.store.operator_pins import OperatorPins
from manylora.adapters.store.preloads import Preloads
from manylora.adapters.store.quarantine import Quarantine
from manylora.adapters.store.tracked import TrackedAdapters
from manylora.adapters.store.verifying import Verifier
from manylora.adapters.store.versions import RELOCATE_S, AdapterVersions
from manylora.adapters.store.wishes import WishList
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.load_stats import LoadStats
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import ManyloraError
from manylora.ids import Digest, Flow
from manylora.kernels.lora_batch import PlacedAdapters

EXPIRY_S = 1.0
"""Interval at which idle adapters are looked for on the device."""


class Store:
    """The adapters of one engine. See `engine.adapter_port.AdapterStore`.

    Thread: one owner calls all methods; loads run in the ingest process and the reader's threads.
    Versions: a wish asks its source when a new request may have come. When the content there has changed, new pins
    wait for the new version and get it; pins on the old one stay.
    """

    def __init__(
        self,
        *,
        shape: BaseShape,
        dtype: str,
        sources: Mapping[SourceName, Source],
        remote: Container[SourceName] = (),
        ingest: Ingest,
        reader: Reader,
        disk: DiskTier,
        bank: Bank,
        clock: Clock,
        config: AdaptersConfig,
    ) -> None:
        self._sources = sources
        self._ingest = ingest
        self._reader = reader
        self._disk = disk
        self._bank = bank
        self._clock = clock
        self._config = config
        self._answers = 0  # of the loaders
        self._next_expiry_s = float("-inf")
        self._is_idle = False  # as of the last poll, and no call since then has given the store work
        self._load_stats = LoadStats()
        self._quarantine = Quarantine(config.quarantine_hits)
        self._tracked = tracked = TrackedAdapters(self._tier_of)
        self._device = device = Device(
            bank=bank,
            host_bytes=config.host_bytes,
            disk=disk,
            reader=reader,
            clock=clock,
            stats=self._load_stats,
            on_change=tracked.versions.moved,
        )
        disk.watch(tracked.versions.moved)
        numbers = itertools.count()  # of jobs of both kinds
        self._versions = versions = AdapterVersions(
            tracked=tracked,
            sources=sources,
            remote=remote,
            ingest=ingest,
            disk=disk,
            clock=clock,
            config=config,
            numbers=numbers,
            quarantine=self._quarantine,
        )
        self._loads = loads = Loads(
            shape=shape,
            dtype=dtype,
            tracked=tracked,
            versions=versions,
            numbers=numbers,
            ingest=ingest,
            disk=disk,
            clock=clock,
            config=config,
            stats=self._load_stats,
        )
        self._wishes = wishes = WishList(tracked)
        self._pins = pins = OperatorPins(versions=versions, device=device, disk=disk, wishes=wishes)
        self._verifier = verifier = Verifier(tracked=tracked, pins=pins, device=device, disk=disk, reader=reader)
        self._eraser = Eraser(tracked=tracked, versions=versions, loads=loads, device=device, disk=disk, reader=reader)
        self._eraser.erase_pushed()
        self._operator = Operator(
            tracked=tracked,
            versions=versions,
            device=device,
            disk=disk,
            clock=clock,
            wishes=wishes,
            pins=pins,
            eraser=self._eraser,
            verifier=verifier,
        )
        self._ascent = Ascent(
            model=shape.name,
            versions=versions,
            wishes=wishes,
            loads=loads,
            device=device,
            pins=pins,
            verifier=verifier,
            config=config,
        )
        self._preloads = Preloads(config, self._operator.manage)

    def _tier_of(self, digest: Digest) -> AdapterState:
        return self._device.tier_of(digest)

    @property
    def weights(self) -> PlacedAdapters:
        """The tensors behind the handles that `pin` returns, for the back end."""
        return self._bank

    # ── wishes ───────────────────────────────────────────────────────────────────────────────────────────────────

    def want(self, ref: AdapterRef, flow: Flow | None = None) -> AdapterState:
        """Ask for an adapter; idempotent. Returns its state now. `flow` is that of a request that has just arrived."""
        self._is_idle = False
        adapter, now_s = self._tracked.track(ref), self._clock.monotonic_s()
        is_arrival = self._wishes.add(adapter, flow, now_s)
        if is_arrival or now_s - adapter.asked_s >= RELOCATE_S:
            self._versions.locate(adapter, now_s)
        self._versions.failure_of(adapter)
        return adapter.state

    def unwant(self, ref: AdapterRef) -> None:
        """End the wish of requests; an operator's stays."""
        self._wishes.drop_requested(ref)

    def lacks_room(self, ref: AdapterRef) -> bool:
        """Return whether an adapter is packed, and versions that are held leave no room for it on the device."""
        adapter = self._wishes.get(ref)
        return adapter is not None and adapter.lacks_room

    def joint_failure(self, refs: Sequence[AdapterRef]) -> ManyloraError | None:
        """Return the error of adapters that can never be on the device together; None if they can, as far as known.

        As for one adapter, neither lent memory nor that of pinned adapters counts.
        """
        tracked = [adapter for ref in refs if (adapter := self._tracked.get(ref)) is not None]
        versions = {adapter.digest for adapter in tracked if adapter.digest is not None}
        num_bytes = sum(self._pins.num_bytes(version) for version in versions)
        limit_bytes = self._device.own_bytes - self._pins.bytes_beside(*versions)
        return None if num_bytes <= limit_bytes else jointly_too_large([ref.id for ref in refs], num_bytes, limit_bytes)

    def state(self, ref: AdapterRef) -> AdapterState:
        """Return the adapter's state, without asking for it."""
        adapter = self._tracked.get(ref)
        if adapter is None:
            return AdapterState.ABSENT
        self._versions.failure_of(adapter)
        return adapter.state

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        """Return the error that ended the adapter's last load, until its retry time."""
        adapter = self._tracked.get(ref)
        return None if adapter is None else self._versions.failure_of(adapter)

    # ── pins ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def pin(self, ref: AdapterRef) -> AdapterHandle | None:
        """Hold the adapter's current version on the device and return its handle, or None if it is not there."""
        adapter = self._tracked.get(ref)
        if adapter is None or adapter.digest is None or self._versions.failure_of(adapter) is not None:
            return None
        adapter.ask_again()  # the next wish may be that of a request of another time
        placed = self._device.pin(ref, adapter.digest, adapter.flow)
        if placed is not None:
            adapter.use_begun(self._clock.monotonic_s())
        return placed

    def unpin(self, placed: AdapterHandle, *, was_used: bool = True) -> None:
        """Give back one pin; `was_used` False: it does not count as a use when room is made."""
        self._is_idle = False  # a deleted version may be out of use now
        digest = placed.digest
        self._device.unpin(digest, was_used=was_used)
        if (adapter := self._tracked.get(placed.ref)) is not None:
            adapter.use_ended(self._clock.monotonic_s())
        if not self._device.is_held(digest):
            if self._eraser.has_condemned(digest):
                self._eraser.advance()
            else:
                self._drop_quarantined(digest)

    def suspect(self, placed: AdapterHandle) -> None:
        """Note that a request with this version came to logits that are not finite."""
        if self._quarantine.suspect(placed.digest) and placed.digest in self._device:
            self._pins.release_all(placed.digest)
            self._drop_quarantined(placed.digest)

    def _drop_quarantined(self, digest: Digest) -> None:
        if digest in self._quarantine and not self._device.is_held(digest) and not self._device.is_moving(digest):
            self._device.remove(digest)

    # ── polls ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_busy(self) -> bool:
        """Return whether a loader is at work, so that the next poll should come soon without any request waiting."""
        is_loading = bool(len(self._loads) or self._device.num_moving or self._versions.num_searches)
        return is_loading or self._eraser.is_busy or self._verifier.is_busy or self._preloads.has_untried

    def _has_work(self) -> bool:
        """Return whether a poll has anything to do, apart from evictions after `idle_ttl_s`."""
        return bool(
            self._wishes
            or self._loads
            or self._preloads
            or self._pins
            or self._device.fresh
            or self._device.num_moving
            or self._versions.num_searches
            or self._verifier.is_busy
            or self._eraser.has_work
            or self._ingest.is_busy
        )

    def poll(self) -> None:
        """Take over the work that the loaders have finished, and start the work that there is room for."""
        if not self._is_idle or (self._config.idle_ttl_s > 0 and self._clock.monotonic_s() >= self._next_expiry_s):
            self._poll()
            self._is_idle = not self._ascent.begun and not self._has_work()
        self._tracked.end_turn()

    def _poll(self) -> None:
        self._ascent.begun.clear()
        self._take_answers()
        self._eraser.advance()
        now_s = self._clock.monotonic_s()
        self._preloads.advance(now_s)
        self._pins.follow_versions(now_s)
        self._expire(now_s)
        self._wishes.drop_lapsed()
        self._versions.give_up_stuck_searches(now_s)
        for number in self._loads.give_up_stuck(now_s):
            self._eraser.erase_load(number)
        self._device.age(now_s)
        self._ascent.advance(now_s)
        self._verifier.advance()

    def _take_answers(self) -> None:
        for outcome in self._ingest.poll():
            self._answers += 1
            if isinstance(outcome, Found) or self._versions.is_search(outcome.number):
                self._versions.end_search(outcome)
            elif not self._loads.end(outcome):
                self._eraser.erase_load(outcome.number)
        for read in self._reader.poll():
            self._answers += 1
            self._end_read(read)
        for placed in self._device.poll_placed():
            for adapter in self._tracked.of_version(placed.digest):
                adapter.placed_with(placed.rank)
            self._note_stage(placed.ref, placed.digest, "read" if self._device.host is None else "place", placed.took_s)
            self._drop_quarantined(placed.digest)

    def _end_read(self, read: ReadImage) -> None:
        if self._verifier.is_reading(read.digest):
            if not self._verifier.end_read(read):
                self._remove_damaged(read.digest)
            return
        ended = self._device.end_read(read)
        if ended.image is None:
            self._remove_damaged(read.digest)
        elif self._device.host is not None:
            self._note_stage(ended.ref, ended.digest, "read", self._clock.monotonic_s() - ended.begun_s)

    def _note_stage(self, ref: AdapterRef, digest: Digest, stage: str, took_s: float) -> None:
        adapter = self._tracked.get(ref)
        if adapter is not None and adapter.digest == digest:
            adapter.stage_took(stage, took_s)

    def _remove_damaged(self, digest: Digest) -> None:
        """Remove an image, so that the next wish packs it again."""
        self._eraser.advance()  # a deleted image is overwritten, damaged or not
        self._disk.remove(digest)

    def _expire(self, now_s: float) -> None:
        """Evict adapters that no request has used for `idle_ttl_s`, once in `EXPIRY_S`."""
        if self._config.idle_ttl_s > 0 and now_s >= self._next_expiry_s:
            self._next_expiry_s = now_s + EXPIRY_S
            self._device.expire(now_s, self._config.idle_ttl_s)

    def begun(self) -> "list[tuple[AdapterRef, int]]":
        """Return the loads that the last poll began, with the bytes of their file, and its reads with their image's."""
        return list(self._ascent.begun)

    # ── texts and memory ─────────────────────────────────────────────────────────────────────────────────────────

    def text(self, ref: AdapterRef) -> AdapterWords | None:
        """Return the text facts of the adapter's current version with their path; None until they are on disk."""
        return self._versions.words(ref)

    def text_digest(self, ref: AdapterRef) -> str:
        """Return the digest of the current version's text; empty if it has none."""
        return self._versions.text_digest(ref)

    def borrow_from(self, lender: Lender) -> None:
        """Let the bank grow into memory that the lender does not use, until `give_back` is called."""
        self._device.borrow_from(lender)

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle adapters until so many of the lent bytes are free, and give them back; False if it cannot."""
        return self._device.give_back(num_bytes)

    # ── operators ────────────────────────────────────────────────────────────────────────────────────────────────

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an action on one adapter; `info` shows its progress.

        Raises `AdapterNotFound` if no tier and no source has it, `AdapterInUse` if it is to go and is held,
        `AdapterCapacity` or `AdapterTooLarge` if a pin leaves too little for others, or the adapter's failure.
        """
        self._is_idle = False
        return self._operator.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """Describe one adapter. Raises `AdapterNotFound` if no tier and no source has it."""
        self._is_idle = False  # its source may have to be asked
        return self._operator.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Describe every adapter that was asked for lately."""
        return self._operator.infos()

    def list(self) -> "list[AdapterRef]":
        """Return every adapter that the sources can list."""
        return [
            AdapterRef(source, adapter_id) for source in self._sources for adapter_id in self._sources[source].list()
        ]

    def stats(self) -> StoreStats:
        host, stats = self._device.host, self._load_stats
        return StoreStats(
            bank_bytes_total=self._bank.total_bytes,
            disk_bytes_total=self._disk.budget_bytes,
            bank_bytes_used=self._device.used_bytes,
            host_bytes_used=0 if host is None else host.used_bytes,
            disk_bytes_used=self._disk.used_bytes,
            on_device=len(self._device),
            in_host=0 if host is None else len(host),
            on_disk=self._disk.num_images,
            pinned=self._pins.num_held,
            loads=stats.loads,
            failures=self._versions.failures,
            evictions=stats.evictions,
            disk_evictions=self._disk.evictions,
            loaded_bytes=stats.loaded_bytes,
            reloaded_bytes=stats.reloaded_bytes,
            load_times=stats.load_times(),
            answers=self._answers,
        )

    def close(self) -> None:
        """Stop the loaders, leave the disk tier to the next process, and give locked pages back to the system."""
        self._ingest.close()
        self._reader.close()
        self._disk.close()
        self._device.close()
