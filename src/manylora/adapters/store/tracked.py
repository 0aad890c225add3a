"""One named adapter as the store tracks it: its states, and the only transitions between them.

                 search_begun,
                 load_begun            load_ended           read              placed
        ABSENT ──────────────► FETCHING ─────────► ON_DISK ──────► IN_HOST ──────────► ON_DEVICE
           ▲                                       │    ▲            │  ▲                 │
           └────────────── evicted ────────────────┘    └─ evicted ──┘  └──── evicted ────┘

        any state ── failed, lost ──► FAILED ── retried ──► the state of the version that is known

A version is read straight to the device where host memory and device are one (`banks/bank.py`). Each line below has a
transition, the states that it leaves, and those that it leads to; a transition may also keep the state.

    search_begun       absent                          -> fetching
    search_ended       fetching                        -> absent
    located            any                             -> absent fetching on_disk in_host on_device
    lost               any                             -> failed
    failed             any                             -> failed
    retried            failed                          -> absent fetching on_disk in_host on_device
    load_begun         absent                          -> fetching
    load_ended         fetching failed                 -> absent on_disk in_host on_device
    load_dropped       fetching                        -> absent on_disk in_host on_device
    version_forgotten  on_disk in_host on_device       -> absent
    stored             absent                          -> on_disk
    read               absent on_disk                  -> in_host
    placed             absent on_disk in_host          -> on_device
    evicted            on_disk in_host on_device       -> absent on_disk in_host

Only this module assigns the attributes of a `TrackedAdapter`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterState
from manylora.adapters.sources.source import Located
from manylora.errors import ManyloraError
from manylora.ids import Digest, Flow
from manylora.models.text.adapter_text import NO_TEXT

NEVER = -2
"""The turn of an adapter that no request has asked for."""
OPERATOR_FLOW = Flow("")
"""The flow of the loads that an operator asks for."""
MAX_TRACKED = 4_096
"""Named adapters that are tracked; the idle one that was asked for longest ago is forgotten."""

ABSENT, FETCHING, FAILED = AdapterState.ABSENT, AdapterState.FETCHING, AdapterState.FAILED
ON_DISK, IN_HOST, ON_DEVICE = AdapterState.ON_DISK, AdapterState.IN_HOST, AdapterState.ON_DEVICE

_ANY = frozenset(AdapterState)
_TIERS = frozenset({ON_DISK, IN_HOST, ON_DEVICE})
_KNOWN = _ANY - {FAILED}

TRANSITIONS: Mapping[str, tuple[frozenset[AdapterState], frozenset[AdapterState]]] = {
    "search_begun": (frozenset({ABSENT}), frozenset({FETCHING})),
    "search_ended": (frozenset({FETCHING}), frozenset({ABSENT})),
    "located": (_ANY, _KNOWN),
    "lost": (_ANY, frozenset({FAILED})),
    "failed": (_ANY, frozenset({FAILED})),
    "retried": (frozenset({FAILED}), _KNOWN),
    "load_begun": (frozenset({ABSENT}), frozenset({FETCHING})),
    "load_ended": (frozenset({FETCHING, FAILED}), _KNOWN - {FETCHING}),
    "load_dropped": (frozenset({FETCHING}), _KNOWN - {FETCHING}),
    "version_forgotten": (_TIERS, frozenset({ABSENT})),
    "stored": (frozenset({ABSENT}), frozenset({ON_DISK})),
    "read": (frozenset({ABSENT, ON_DISK}), frozenset({IN_HOST})),
    "placed": (frozenset({ABSENT, ON_DISK, IN_HOST}), frozenset({ON_DEVICE})),
    "evicted": (_TIERS, frozenset({ABSENT, ON_DISK, IN_HOST})),
}
"""Each transition with the states that it leaves and those that it leads to: the table of this module's docstring."""

_HEIGHT = {ABSENT: 0, ON_DISK: 1, IN_HOST: 2, ON_DEVICE: 3}
_ARRIVAL = {ON_DISK: "stored", IN_HOST: "read", ON_DEVICE: "placed"}


class VersionTiers:
    """The tier that has each version, and the tracked adapters that have it.

    tier_of  returns the highest tier that has a version: `ABSENT`, `ON_DISK`, `IN_HOST` or `ON_DEVICE`
    """

    def __init__(self, tier_of: Callable[[Digest], AdapterState]) -> None:
        self.tier_of = tier_of
        self.adapters: dict[Digest, set[TrackedAdapter]] = {}

    def add(self, adapter: "TrackedAdapter", digest: Digest) -> None:
        self.adapters.setdefault(digest, set()).add(adapter)

    def discard(self, adapter: "TrackedAdapter", digest: Digest) -> None:
        adapters = self.adapters[digest]
        adapters.discard(adapter)
        if not adapters:
            del self.adapters[digest]

    def moved(self, digest: Digest) -> None:
        """Mark the adapters of a version whose place a tier has changed: the tier has taken it in or dropped it."""
        if adapters := self.adapters.get(digest):
            tier = self.tier_of(digest)
            for adapter in adapters:
                adapter.moved(tier)


class TrackedAdapter:
    """One named adapter; read by all modules of the store and changed by the methods here alone.

    The version
    state         see the module
    located       the version that its source has; None until it is known, and when the source has none
    digest        content of that version; None until it is packed
    tier          the highest tier that has this content
    text          digest of the version's text files
    rank          the largest rank of its modules; 0 until it was on the device
    stage_ms      milliseconds that each stage of its last load took
    is_verified   result of the last verification; None before the first, and while one is under way

    The work under way
    search, job   numbers of the question to its remote source, and of the load of `located`
    asked_s       when its source was last asked for a request; minus infinity: the next request asks
    confirmed_s   when a remote source last confirmed the version
    failure       the error that new requests get until `retry_s`, and until two polls after `failed_turn` at least

    The wish
    flow          of the request that asked for it last
    turn          number of the poll before which a request last asked for it
    since_s       when the present wait began; None: no request waits
    is_wanted     by a request, an operator or a prefetch
    is_kept_wanted, is_prefetched   by an operator, until it is on the device; by a fleet's router, until it is on the
                  disk; both until it has failed
    lacks_room    it is packed, and what others hold leaves no room for it

    The operator's pin
    is_pinned, pin_error   pinned; why a pin was given up
    held          the version that the pin holds on the device
    is_deleted    by an operator, until its source has another version
    draining      deleted versions that requests still hold

    The use
    hits          pins of requests since it is tracked
    last_use_s    on the clock, when the last of them began or ended
    """

    __slots__ = (
        *("ref", "state", "located", "digest", "tier", "text", "rank", "stage_ms", "is_verified"),
        *("search", "job", "asked_s", "confirmed_s", "failure", "retry_s", "failed_turn"),
        *("flow", "turn", "since_s", "is_wanted", "is_kept_wanted", "is_prefetched", "lacks_room"),
        *("is_pinned", "pin_error", "held", "is_deleted", "draining"),
        *("hits", "last_use_s", "_versions"),
    )

    def __init__(self, ref: AdapterRef, versions: VersionTiers) -> None:
        self.ref = ref
        self._versions = versions
        self.located: Located | None = None
        self.digest: Digest | None = None
        self.tier = ABSENT
        self.text = NO_TEXT
        self.rank = 0
        self.stage_ms: dict[str, float] = {}
        self.is_verified: bool | None = None
        self.search: int | None = None
        self.job: int | None = None
        self.asked_s = float("-inf")
        self.confirmed_s = float("-inf")
        self.failure: ManyloraError | None = None
        self.retry_s = 0.0
        self.failed_turn = 0
        self.flow = OPERATOR_FLOW
        self.turn = NEVER
        self.since_s: float | None = None
        self.is_wanted = False
        self.is_kept_wanted = False
        self.is_prefetched = False
        self.lacks_room = False
        self.is_pinned = False
        self.pin_error = ""
        self.held: Digest | None = None
        self.is_deleted = False
        self.draining: frozenset[Digest] = frozenset()
        self.hits = 0
        self.last_use_s: float | None = None
        self.state = self._known_state()

    # ── the version ──────────────────────────────────────────────────────────────────────────────────────────────

    def search_begun(self, number: int) -> None:
        """A remote source is asked for the version."""
        self.search = number
        self._enter("search_begun")

    def search_ended(self, now_s: float) -> None:
        """The source has answered, or the search was given up."""
        self.search, self.confirmed_s = None, now_s
        self._enter("search_ended")

    def asked(self, now_s: float) -> None:
        """The source is asked for the version now."""
        self.asked_s = now_s

    def ask_again(self) -> None:
        """Let the next request ask the source, however soon it comes."""
        self.asked_s = float("-inf")

    def confirmation_aged(self, confirmed_s: float) -> None:
        """Set the time of the last confirmation, which decides when a remote source is asked again."""
        self.confirmed_s = confirmed_s

    def located_as(self, located: Located, digest: Digest | None, text: str, job: int | None) -> None:
        """The source has another version than before; what was known of the old one, and its failure, end.

        Args:  digest, text  of the new version, if it is packed      job  the load of it, if one is under way
        """
        self.located, self.failure, self.is_deleted, self.is_verified = located, None, False, None
        self.rank, self.stage_ms = 0, {}
        self.job, self.text = job, text
        self._set_digest(digest)
        self._enter("located")

    def lost(self, error: ManyloraError, retry_s: float, turn: int) -> None:
        """The source has no version any more, and `error` says why."""
        self.located = self.job = None
        self._set_digest(None)
        self._set_failure(error, retry_s, turn)
        self._enter("lost")

    def failed(self, error: ManyloraError, retry_s: float, turn: int) -> None:
        """New requests get `error` until `retry_s`; a load under way goes on. Operators' wishes end."""
        self._set_failure(error, retry_s, turn)
        self._enter("failed")

    def retried(self) -> None:
        """The failure ends."""
        self.failure = None
        self._enter("retried")

    def load_begun(self, number: int) -> None:
        """The ingest process loads the version."""
        self.job = number
        self._enter("load_begun")

    def load_ended(self, digest: Digest, text: str, stage_ms: Mapping[str, float]) -> None:
        """The version is packed. A timeout that stands ends, and the wait for the read begins anew."""
        self.job, self.failure, self.since_s = None, None, None
        self.text, self.stage_ms = text, dict(stage_ms)
        self._set_digest(digest)
        self._enter("load_ended")

    def load_dropped(self) -> None:
        """The load has ended without an image."""
        self.job = None
        self._enter("load_dropped")

    def version_forgotten(self) -> None:
        """The content is to be loaded again, though the source has the same version."""
        self._set_digest(None)
        self._enter("version_forgotten")

    def moved(self, tier: AdapterState) -> None:
        """A tier has taken the version in or dropped it; `tier` is the highest that has it now."""
        transition = _ARRIVAL[tier] if _HEIGHT[tier] > _HEIGHT[self.tier] else "evicted"
        self.tier = tier
        self._enter(transition)

    def stage_took(self, stage: str, took_s: float) -> None:
        """Add a stage to those of the last load."""
        self.stage_ms[stage] = round(1e3 * took_s, 3)

    def placed_with(self, rank: int) -> None:
        """The version's largest rank is known."""
        self.rank = rank

    def verified(self, is_whole: bool | None) -> None:
        """A verification has ended with this result, or has been asked for (None)."""
        self.is_verified = is_whole

    # ── the wish ─────────────────────────────────────────────────────────────────────────────────────────────────

    def requested(self, flow: Flow | None, turn: int) -> None:
        """A request asks for the adapter before poll number `turn`; `flow` None: the flow stays."""
        self.flow = self.flow if flow is None else flow
        self.turn = turn
        self.is_wanted = True

    def request_dropped(self) -> None:
        """No request asks for the adapter; an operator may."""
        self.turn = NEVER

    def unwanted(self) -> None:
        """Neither a request nor an operator nor a prefetch asks for the adapter."""
        self.is_wanted = self.is_kept_wanted = self.is_prefetched = self.lacks_room = False
        self.since_s, self.turn = None, NEVER

    def keep_wanted(self) -> None:
        """An operator asks for the adapter."""
        self.is_kept_wanted = self.is_wanted = True

    def kept_dropped(self) -> None:
        """The operator's wish has ended, or is met."""
        self.is_kept_wanted = False

    def prefetch_begun(self) -> None:
        """A router asks for the adapter on the disk."""
        self.is_prefetched = self.is_wanted = True

    def prefetch_ended(self) -> None:
        """It is on the disk or nearer."""
        self.is_prefetched = False

    def wait_begun(self, now_s: float) -> None:
        self.since_s = now_s

    def wait_ended(self) -> None:
        self.since_s = None

    def room_looked_for(self, *, is_found: bool) -> None:
        self.lacks_room = not is_found

    # ── the operator ─────────────────────────────────────────────────────────────────────────────────────────────

    def pinned(self) -> None:
        self.is_pinned, self.pin_error = True, ""

    def unpinned(self, why: str = "") -> None:
        """The pin ends; `why` says so if it was given up."""
        self.is_pinned, self.pin_error = False, why

    def held_on_device(self, digest: Digest) -> None:
        """The pin holds this version on the device."""
        self.held = digest

    def released(self) -> None:
        """The pin holds no version."""
        self.held = None

    def deleted(self) -> None:
        """An operator has taken the name away."""
        self.is_deleted = True

    def drain_begun(self, digest: Digest) -> None:
        """Requests still hold a version that is deleted."""
        self.draining |= {digest}

    def drained(self, digest: Digest) -> None:
        self.draining -= {digest}

    # ── the use ──────────────────────────────────────────────────────────────────────────────────────────────────

    def use_begun(self, now_s: float) -> None:
        """A request has pinned a version under this name; the next one asks the source again."""
        self.hits += 1
        self.last_use_s = now_s

    def use_ended(self, now_s: float) -> None:
        self.last_use_s = now_s

    # ── what the transitions share ───────────────────────────────────────────────────────────────────────────────

    def _set_digest(self, digest: Digest | None) -> None:
        if digest != self.digest:
            if self.digest is not None:
                self._versions.discard(self, self.digest)
            if digest is not None:
                self._versions.add(self, digest)
        self.digest = digest
        self.tier = ABSENT if digest is None else self._versions.tier_of(digest)

    def _set_failure(self, error: ManyloraError, retry_s: float, turn: int) -> None:
        self.failure, self.retry_s, self.failed_turn = error, retry_s, turn
        self.since_s = None
        self.is_kept_wanted = self.is_prefetched = False

    def _enter(self, transition: str) -> None:
        """Change to the state that the attributes now mean."""
        state = self._known_state()
        if state is not self.state:
            sources, targets = TRANSITIONS[transition]
            assert self.state in sources, f"{transition} leads from {self.state} to {state}"
            assert state in targets, f"{transition} leads from {self.state} to {state}"
            self.state = state

    def _known_state(self) -> AdapterState:
        if self.failure is not None:
            return FAILED
        is_asked = self.search is not None or self.ref.merge is not None
        if self.job is not None or (self.located is None and is_asked):
            return FETCHING
        return self.tier


class TrackedAdapters:
    """The named adapters that were asked for lately.

    turn  number of polls so far
    """

    def __init__(self, tier_of: Callable[[Digest], AdapterState]) -> None:
        self.versions = VersionTiers(tier_of)
        self._adapters: OrderedDict[AdapterRef, TrackedAdapter] = OrderedDict()
        self.turn = 0

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[TrackedAdapter]:
        return iter(list(self._adapters.values()))

    def get(self, ref: AdapterRef) -> TrackedAdapter | None:
        """Return the adapter if it is tracked."""
        return self._adapters.get(ref)

    def track(self, ref: AdapterRef) -> TrackedAdapter:
        """Return the adapter, and make it the one that was asked for last."""
        adapter = self._adapters.get(ref)
        if adapter is None:
            adapter = self._adapters[ref] = TrackedAdapter(ref, self.versions)
            self._forget_idle()
        else:
            self._adapters.move_to_end(ref)
        return adapter

    def of_version(self, digest: Digest) -> tuple[TrackedAdapter, ...]:
        """Return the adapters whose present version has this content."""
        return tuple(self.versions.adapters.get(digest, ()))

    def is_requested(self, adapter: TrackedAdapter) -> bool:
        """Return whether a request has asked for the adapter since the poll before the last."""
        return adapter.turn >= self.turn - 1

    def end_turn(self) -> None:
        """A poll has ended."""
        self.turn += 1

    def _forget_idle(self) -> None:
        for _ in range(len(self._adapters) - MAX_TRACKED):
            oldest = next(iter(self._adapters.values()))
            is_moving = oldest.job is not None or oldest.search is not None
            if oldest.is_wanted or oldest.is_pinned or is_moving or oldest.draining:
                self._adapters.move_to_end(oldest.ref)
                continue
            del self._adapters[oldest.ref]
            if oldest.digest is not None:
                self.versions.discard(oldest, oldest.digest)
