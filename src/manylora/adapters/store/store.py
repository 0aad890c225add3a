"""THE state machine of adapters: wanted, fetched, on disk, in memory, placed, pinned, evicted, failed."""

import itertools
from collections.abc import Container, Mapping

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterHandle, AdapterInfo, AdapterState, AdapterWords, StoreStats
from manylora.adapters.base_shape import BaseShape
from manylora.adapters.jobs import Found, Ingest
from manylora.adapters.refusals import Refusals
from manylora.adapters.sources.source import Source
from manylora.adapters.store.erasing import Eraser
from manylora.adapters.store.loads import Loads
from manylora.adapters.store.operations import Operator, Wishes
from manylora.adapters.store.preloads import Preloads
from manylora.adapters.store.quarantine import Quarantine
from manylora.adapters.store.verifying import Verifier
from manylora.adapters.store.versions import RELOCATE_S, AdapterVersions
from manylora.adapters.tiers.bank import Bank, Lender
from manylora.adapters.tiers.device import Device
from manylora.adapters.tiers.disk import DiskTier
from manylora.adapters.tiers.load_stats import LoadStats
from manylora.adapters.tiers.reading import Reader, ReadImage
from manylora.adapters.tiers.room_cache import RoomCache
from manylora.adapters.tracked import NEVER, TrackedAdapter
from manylora.clock import Clock
from manylora.config.groups.adapters import AdaptersConfig
from manylora.errors import AdapterCapacity, ManyloraError
from manylora.ids import Digest, Flow
from manylora.kernels.interface import PlacedAdapters

PATIENCE_S = 0.5
EXPIRY_S = 1.0


class Store:
    """Brings wanted adapters to the device and keeps them there while pinned. See `engine.adapter_port.AdapterStore`.

    Thread: one owner calls all methods; loads run in the ingest process and the reader's threads.
    Versions: a wish looks at its source when a new request may have come; when the content there has changed, new
    pins wait for the new version and get it, old pins keep theirs.
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
        self._shape = shape
        self._sources = sources
        self._ingest = ingest
        self._reader = reader
        self._disk = disk
        self._bank = bank
        self._clock = clock
        self._config = config
        self._ledger = LoadStats()
        numbers = itertools.count()  # of jobs of both kinds
        self._quarantine = Quarantine(config.quarantine_hits)
        self._names = AdapterVersions(
            sources=sources,
            remote=remote,
            ingest=ingest,
            disk=disk,
            clock=clock,
            config=config,
            numbers=numbers,
            quarantine=self._quarantine,
        )
        self._loads = Loads(
            shape=shape,
            dtype=dtype,
            names=self._names,
            numbers=numbers,
            ingest=ingest,
            disk=disk,
            clock=clock,
            config=config,
            ledger=self._ledger,
        )
        self._device = Device(bank=bank, disk=disk, reader=reader, clock=clock, ledger=self._ledger)
        self._eraser = Eraser(names=self._names, loads=self._loads, device=self._device, disk=disk, reader=reader)
        self._verifier = Verifier(names=self._names, device=self._device, disk=disk, reader=reader)
        self._operator = Operator(
            names=self._names,
            device=self._device,
            disk=disk,
            clock=clock,
            wishes=Wishes(self._keep_wanted, self._drop_kept, self._state),
            eraser=self._eraser,
            verifier=self._verifier,
        )
        self._orders = Preloads(config, self._operator.manage)
        self._next_expiry_s = float("-inf")
        self._users: dict[Digest, set[TrackedAdapter]] = {}  # of versions that requests hold: by which names
        self._wanted: dict[AdapterRef, TrackedAdapter] = {}  # in the order of their first wish
        self._begun: list[tuple[AdapterRef, int]] = []
        self._answers = 0  # of the loaders
        self._no_room = RoomCache()
        self._wanted_versions: set[Digest] | None = None  # once it was needed in this poll

    @property
    def weights(self) -> PlacedAdapters:
        """The tensors behind the handles that `pin` returns, for the back end."""
        return self._bank

    # ── what the engine calls ────────────────────────────────────────────────────────────────────────────────────

    def want(self, ref: AdapterRef, flow: Flow | None = None) -> AdapterState:
        """Ask for an adapter; idempotent, returns at once with its state now. `flow` says who asks, where it is new."""
        name = self._names.of(ref)
        name.flow = name.flow if flow is None else flow
        now_s = self._clock.monotonic_s()
        is_arrival = not self._names.is_requested(name)
        if is_arrival:
            name.since_s = now_s
        name.turn = self._names.turn
        self._wanted.setdefault(ref, name)
        name.is_wanted = True
        if is_arrival or now_s - name.located_s >= RELOCATE_S:
            self._names.locate(name, now_s)
        return self._state(name)

    @property
    def is_busy(self) -> bool:
        """Whether a loader is at work, so that a poll soon will find something, though nobody may wait for it."""
        is_loading = bool(len(self._loads) or self._device.num_reads or self._names.num_searches)
        return is_loading or self._eraser.is_busy or self._verifier.is_busy or self._orders.has_untried

    def lacks_room(self, ref: AdapterRef) -> bool:
        """Whether only what is pinned on the device keeps a packed adapter from being read."""
        name = self._wanted.get(ref)
        return name is not None and name.lacks_room

    def unwant(self, ref: AdapterRef) -> None:
        """Forget the wish; an operator's stays."""
        name = self._wanted.get(ref)
        if name is not None and name.is_kept_wanted:
            name.turn = NEVER
        elif name is not None:
            self._drop_wish(name)

    def _drop_wish(self, name: TrackedAdapter) -> None:
        del self._wanted[name.ref]
        name.is_wanted = False
        name.since_s, name.turn, name.lacks_room = None, NEVER, False

    def poll(self) -> None:
        """Take over what the loaders have finished, and start what may start."""
        self._begun.clear()
        for outcome in self._ingest.poll():
            self._answers += 1
            if isinstance(outcome, Found) or self._names.is_search(outcome.number):
                self._names.end_search(outcome)
            elif not self._loads.end(outcome):
                self._eraser.erase_load(outcome.number)
        for read in self._reader.poll():
            self._answers += 1
            self._end_read(read)
        self._eraser.advance()
        now_s = self._clock.monotonic_s()
        self._orders.advance(now_s)
        self._operator.follow_versions(now_s)
        self._expire(now_s)
        for name in list(self._wanted.values()):
            if name.turn < self._names.turn and not name.is_kept_wanted:
                self._drop_wish(name)
        self._names.give_up_stuck_searches(now_s)
        for number in self._loads.give_up_stuck(now_s):
            self._eraser.erase_load(number)
        self._device.age(now_s)
        self._no_room.clear()
        self._wanted_versions = None
        for name in list(self._wanted.values()):
            self._advance(name, now_s)
        self._verifier.advance()
        self._names.turn += 1

    def pin(self, ref: AdapterRef) -> AdapterHandle | None:
        """Hold the adapter's current version on the device, or None if it is not there."""
        name = self._names.get(ref)
        if name is None or name.digest is None or self._names.standing_failure(name) is not None:
            return None
        name.located_s = float("-inf")  # the next wish may be another request's, of another time
        placed = self._device.pin(ref, name.digest, name.flow)
        if placed is not None:
            self._users.setdefault(name.digest, set()).add(name)
            name.hits += 1
            name.last_use_s = self._clock.monotonic_s()
        return placed

    def unpin(self, placed: AdapterHandle, *, was_used: bool = True) -> None:
        """Give back one pin."""
        self._device.unpin(placed.digest, was_used=was_used)
        for name in self._users[placed.digest]:
            name.last_use_s = self._clock.monotonic_s()
        if self._device.pins(placed.digest) == 0:
            del self._users[placed.digest]
            if self._eraser.has_condemned(placed.digest):
                self._eraser.advance()
            else:
                self._drop_quarantined(placed.digest)

    def text(self, ref: AdapterRef) -> AdapterWords | None:
        """Return the text facts of the adapter's current version with their path; None until they are on disk."""
        return self._names.words(ref)

    def text_digest(self, ref: AdapterRef) -> str:
        """The digest of what the current version says of text; empty for nothing."""
        return self._names.text_digest(ref)

    def suspect(self, placed: AdapterHandle) -> None:
        """Note that a request with this version came to logits that are not finite."""
        if self._quarantine.suspect(placed.digest) and placed.digest in self._device:
            self._device.release_all(self._names, placed.digest)
            self._drop_quarantined(placed.digest)

    def _drop_quarantined(self, digest: Digest) -> None:
        if digest in self._quarantine and not self._device.is_held(digest):
            self._device.evict(digest)

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        """The error that ended the adapter's last load, while it stands."""
        name = self._names.get(ref)
        return None if name is None else self._names.standing_failure(name)

    def begun(self) -> "list[tuple[AdapterRef, int]]":
        """What the last `poll` began for a wish: loads by the bytes of their file, reads by those of their image."""
        return list(self._begun)

    def borrow_from(self, lender: Lender) -> None:
        """From now on, the bank may grow into memory that is idle elsewhere, until `give_back` is called."""
        self._device.borrow_from(lender)

    def give_back(self, num_bytes: int) -> bool:
        """Evict idle adapters until so many of the lent bytes are free, and give them back; False if it cannot."""
        return self._device.give_back(num_bytes)

    def stats(self) -> StoreStats:
        return StoreStats(
            bank_bytes_total=self._bank.total_bytes,
            bank_bytes_used=self._bank.used_bytes,
            host_bytes_used=0,
            disk_bytes_used=self._disk.used_bytes,
            on_device=self._bank.num_placed,
            in_host=0,
            on_disk=self._disk.num_images,
            pinned=self._operator.num_pinned,
            loads=self._ledger.loads,
            failures=self._names.failures,
            evictions=self._ledger.evictions,
            disk_evictions=self._disk.evictions,
            loaded_bytes=self._ledger.loaded_bytes,
            reloaded_bytes=self._ledger.reloaded_bytes,
            load_times=self._ledger.load_times(),
            answers=self._answers,
        )

    # ── what an operator calls ───────────────────────────────────────────────────────────────────────────────────

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an action on one adapter; `info` tells how far it is.

        Raises `AdapterNotFound` if nothing of it is anywhere, `AdapterInUse` if what is to go is held,
        `AdapterCapacity` or `AdapterTooLarge` if a pin leaves too little for others, or what stands against it.
        """
        return self._operator.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """What is known of one adapter. Raises `AdapterNotFound` if that is nothing."""
        return self._operator.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """What is known of every adapter that was asked for lately."""
        return self._operator.infos()

    def _keep_wanted(self, name: TrackedAdapter) -> None:
        """Want an adapter until it is on the device or has failed, without anyone waiting for it."""
        name.is_kept_wanted = name.is_wanted = True
        self._wanted.setdefault(name.ref, name)

    def _drop_kept(self, name: TrackedAdapter) -> None:
        """End an operator's wish; those of requests stay."""
        name.is_kept_wanted = False
        if not self._names.is_requested(name):
            self._drop_wish(name)

    def list(self) -> "list[AdapterRef]":
        """Every adapter the sources can list."""
        return [
            AdapterRef(source, adapter_id) for source in self._sources for adapter_id in self._sources[source].list()
        ]

    def state(self, ref: AdapterRef) -> AdapterState:
        """The adapter's state, without asking for it."""
        name = self._names.get(ref)
        return AdapterState.ABSENT if name is None else self._state(name)

    def close(self) -> None:
        """Stop the loaders and leave the disk tier to the next process."""
        self._ingest.close()
        self._reader.close()
        self._disk.close()

    # ── states ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _state(self, name: TrackedAdapter) -> AdapterState:
        if self._names.standing_failure(name) is not None:
            return AdapterState.FAILED
        is_asked = name.search is not None or name.ref.merge is not None
        if name.job is not None or (name.located is None and is_asked):
            return AdapterState.FETCHING
        if name.digest is not None and name.digest in self._device:
            return AdapterState.ON_DEVICE
        if name.digest is not None and self._disk.facts(name.digest) is not None:
            return AdapterState.ON_DISK
        return AdapterState.ABSENT

    # ── loads ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _advance(self, name: TrackedAdapter, now_s: float) -> None:
        """Take one wish the next step towards the device, if there is room for it."""
        name.lacks_room = False
        if name.located is None and name.ref.merge is not None:
            self._names.locate(name, now_s)  # its members' sources may have answered
            self._wanted_versions = None
        if self._names.standing_failure(name) is not None or name.located is None:
            return  # a search that takes too long is given up by itself
        if name.digest is not None and name.digest not in self._device and self._disk.facts(name.digest) is None:
            name.digest = None  # evicted from every tier since
        if name.digest is not None and name.digest in self._device:
            name.since_s = None
            name.is_kept_wanted = False
            return
        name.since_s = now_s if name.since_s is None else name.since_s
        is_packed = name.digest is not None and not self._device.is_reading(name.digest)
        # A full bank is back-pressure: how long that may last is for the engine's queue to say.
        if now_s - name.since_s >= self._config.load_timeout_s and not is_packed:
            if name.digest is None and name.job is None:  # it never came to its turn
                self._names.fail(name, AdapterCapacity("Model is overloaded"), now_s)
            else:
                self._loads.time_out(name, now_s)
        elif name.digest is not None:
            self._begin_read(name, name.digest, now_s)
        elif name.job is None and self._loads.begin(name, name.located, now_s):
            self._begun.append((name.ref, name.located.weights_bytes))

    def _begin_read(self, name: TrackedAdapter, digest: Digest, now_s: float) -> None:
        if self._device.is_reading(digest) or self._verifier.is_reading(digest):
            return
        facts = self._disk.facts(digest)
        assert facts is not None  # `_advance` has looked
        spared, is_patient = self._spared(name, now_s)
        # What is larger may be too large beside what is pinned, and is told so.
        is_small = facts.body_bytes <= self._device.own_bytes // 4
        if is_small and self._no_room.is_sure(name.flow, facts.body_bytes, is_patient=is_patient):
            name.lacks_room = True
            return
        # What is lent may be called back while a sequence waits for it, and what is pinned makes way for nobody.
        limit_bytes = self._device.own_bytes - self._operator.bytes_beside(digest)
        if facts.body_bytes > limit_bytes:
            refuse = Refusals(name.ref.id, name.ref.source, self._shape.name)
            self._names.fail(name, refuse.too_large(facts.body_bytes, limit_bytes), now_s)
        elif self._device.begin_read(name.ref, name.flow, facts, spared, is_patient):
            self._begun.append((name.ref, facts.body_bytes))
            name.since_s = now_s
        else:
            name.lacks_room = True
            self._no_room.note(name.flow, facts.body_bytes, is_patient=is_patient)

    def _expire(self, now_s: float) -> None:
        """Take idle adapters off the device; looked for once a second."""
        if self._config.idle_ttl_s > 0 and now_s >= self._next_expiry_s:
            self._next_expiry_s = now_s + EXPIRY_S
            self._device.expire(now_s, self._config.idle_ttl_s)

    def _end_read(self, read: ReadImage) -> None:
        if self._verifier.is_reading(read.digest):
            if not self._verifier.end_read(read):
                self._remove_damaged(read.digest)
            return
        ended = self._device.end_read(read)
        if ended is None:
            self._remove_damaged(read.digest)
            return
        name = self._names.get(ended.ref)
        if name is not None and name.digest == ended.digest:
            name.stage_ms["read"] = round(1e3 * ended.took_s, 3)
        self._drop_quarantined(ended.digest)

    def _remove_damaged(self, digest: Digest) -> None:
        """Let an image be packed again at the next wish."""
        self._eraser.advance()  # what is deleted is overwritten, damaged or not
        self._disk.remove(digest)

    def _spared(self, name: TrackedAdapter, now_s: float) -> tuple[set[Digest], bool]:
        """What others want now is not evicted for this one until it has waited for `PATIENCE_S`; what was placed for
        them a moment ago not even then, or two adapters could displace each other for ever without one being used.

        Returns that, and whether it is still to wait before it takes what is within another flow's share.
        """
        if self._wanted_versions is None:
            self._wanted_versions = {other.digest for other in self._wanted.values() if other.digest is not None}
        wanted = self._wanted_versions
        is_patient = name.since_s is None or now_s - name.since_s < PATIENCE_S
        return wanted if is_patient else wanted & self._device.fresh, is_patient
