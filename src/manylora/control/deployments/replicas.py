"""The replicas of one dedicated deployment as a pure state machine: which start, which leave, and what each one is.

    starting ──► ready ──► draining ──► ended          a sight of its process, or an act of `decide`
        └───────────┴──────────┴──────────▲            its process is gone, or was too slow and is ended

A second is billed while a replica is `ready`: neither its start, nor its drain, nor a failed start costs anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

UNHEALTHY_MS = 30_000
"""Time for which a ready replica may fail its health check. Then its process is ended, and another one starts."""
DRAIN_MS = 120_000
"""Time that a replica has to finish its requests before its process is killed."""
SHORT_LIFE_MS = 60_000
"""A replica that ends sooner after it became ready counts as a failed start."""
FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 2_000, 300_000
"""Pause after the first failed start, which doubles with each further one, and its limit."""


class ReplicaState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    ENDED = "ended"


class Sight(StrEnum):
    """The state of a replica's process: it runs and answers, runs without an answer, or does not run."""

    WELL = "well"
    SILENT = "silent"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class DedicatedReplica:
    """One start of a replica.

    form        digest of the settings that it was started with
    since_ms    moment of the last change of its state
    seen_ms     last moment at which its process was seen
    well_ms     last moment at which it answered
    [ready_ms, left_ms)  the billed time; ready_ms None: none; left_ms None: it goes on
    """

    id: str
    slot: int
    form: str
    state: ReplicaState
    begun_ms: int
    since_ms: int
    seen_ms: int
    well_ms: int
    ready_ms: int | None = None
    left_ms: int | None = None
    ended_ms: int | None = None
    reason: str = ""
    has_failed: bool = False

    @property
    def is_live(self) -> bool:
        return self.state is not ReplicaState.ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The wish of a deployment for replicas: its bounds, its load and the moments that decide.

    is_wanted   False: it is deleted, or its tenant may not run it; no replica stays
    load        requests under way or waiting
    used_ms     moment of the last request; 0: none
    needed_ms   last moment at which the load needed as many replicas as are ready
    retry_ms    no start before it
    form        digest of the settings that a replica should have
    """

    least: int
    most: int
    cooldown_ms: int
    per_replica: int
    load: int
    used_ms: int
    needed_ms: int
    retry_ms: int
    form: str
    is_wanted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Acts:
    """Slots that get a replica, and ids of replicas that leave: after their requests, or at once."""

    starts: tuple[int, ...] = ()
    drains: tuple[str, ...] = ()
    kills: tuple[str, ...] = ()


def seen(replica: DedicatedReplica, sight: Sight, why: str, now_ms: int) -> DedicatedReplica:
    """Return a replica after a sight of its process. `why`: the reason of an end, from the process's own words.

    A ready replica whose process is gone is billed up to the last moment at which it was seen.
    """
    if sight is not Sight.GONE:
        replica = replace(replica, seen_ms=now_ms)
    if sight is Sight.WELL:
        replica = replace(replica, well_ms=now_ms)
    match replica.state, sight:
        case ReplicaState.STARTING, Sight.WELL:
            return replace(replica, state=ReplicaState.READY, since_ms=now_ms, ready_ms=now_ms)
        case ReplicaState.DRAINING, Sight.GONE:
            return replace(replica, state=ReplicaState.ENDED, since_ms=now_ms, ended_ms=now_ms)
        case ((ReplicaState.STARTING | ReplicaState.READY), Sight.GONE):
            left_ms = None if replica.ready_ms is None else max(replica.ready_ms, replica.seen_ms)
            ended = replace(replica, state=ReplicaState.ENDED, since_ms=now_ms, ended_ms=now_ms, left_ms=left_ms)
            return replace(ended, has_failed=True, reason=replica.reason or why)
    return replica


def drained(replica: DedicatedReplica, now_ms: int, reason: str) -> DedicatedReplica:
    """Return a replica that was told to finish its requests and leave; its billed time ends, once.

    One that was told before, or has ended, stays as it is.
    """
    if replica.state in (ReplicaState.DRAINING, ReplicaState.ENDED):
        return replica
    left_ms = None if replica.ready_ms is None else max(replica.ready_ms, now_ms)
    return replace(replica, state=ReplicaState.DRAINING, since_ms=now_ms, left_ms=left_ms, reason=reason)


def why_killed(replica: DedicatedReplica, now_ms: int, start_ms: int) -> str | None:
    """Return the reason why a process must be killed now; None: it may go on. `start_ms`: time that a start has."""
    if replica.state is ReplicaState.STARTING and now_ms - replica.begun_ms > start_ms:
        return f"it was not ready within {start_ms / 1000:g} s (placement.start_timeout_s)"
    if replica.state is ReplicaState.READY and now_ms - replica.well_ms > UNHEALTHY_MS:
        return f"it did not answer its health check for {UNHEALTHY_MS / 1000:g} s"
    if replica.state is ReplicaState.DRAINING and now_ms - replica.since_ms > DRAIN_MS:
        return f"it did not end within {DRAIN_MS / 1000:g} s"
    return None


def number_loaded(wish: Wish) -> int:
    """Return the number of replicas that the requests of this moment need, within the bounds."""
    return min(wish.most, max(wish.least, -(-wish.load // wish.per_replica)))


def number_needed(wish: Wish, now_ms: int) -> int:
    """Return the number of replicas that the load needs; one for the cooldown after the last request."""
    if not wish.is_wanted:
        return 0
    is_recent = wish.used_ms > 0 and now_ms - wish.used_ms < wish.cooldown_ms
    return max(number_loaded(wish), int(is_recent))


def decide(wish: Wish, replicas: Sequence[DedicatedReplica], now_ms: int, start_ms: int) -> Acts:
    """Return the acts that bring a deployment closer to its wish. A second call before their effect repeats none.

    A replica of another form leaves once one of the present form is ready. Where there is no free slot for that one,
    the oldest leaves first, since the memory of the machine is planned for the slots. Replicas over `most` leave at
    once: other deployments may have the memory that a lower number leaves.
    """
    live = [each for each in replicas if each.is_live]
    kills = tuple(each.id for each in live if why_killed(each, now_ms, start_ms) is not None)
    serving = [
        each for each in live if each.id not in kills and each.state in (ReplicaState.STARTING, ReplicaState.READY)
    ]
    if not wish.is_wanted:
        return Acts(drains=tuple(each.id for each in serving), kills=kills)
    needed = number_needed(wish, now_ms)
    present = [each for each in serving if each.form == wish.form]
    old = [each for each in serving if each.form != wish.form]
    free = wish.most - len(live)
    starts: tuple[int, ...] = ()
    if now_ms >= wish.retry_ms and len(present) < needed:
        taken = {each.slot for each in live}
        open_slots = [slot for slot in range(wish.most) if slot not in taken]
        starts = tuple(open_slots[: max(0, min(needed - len(present), free))])
    is_replaced = any(each.state is ReplicaState.READY for each in present) or not needed
    makes_room = free == 0 and not present and all(each in serving for each in live)
    drains = [each.id for each in (old if is_replaced else old[: int(makes_room)])]
    is_cool = now_ms - wish.needed_ms >= wish.cooldown_ms
    drains += [each.id for each in _leaving(present)[: max(0, len(present) - (needed if is_cool else wish.most))]]
    excess = len(serving) - wish.most - len(drains)
    drains += [each.id for each in _leaving(old) if each.id not in drains][: max(0, excess)]
    return Acts(starts=starts, drains=tuple(drains), kills=kills)


def _leaving(replicas: Sequence[DedicatedReplica]) -> list[DedicatedReplica]:
    """Return replicas in the order in which they leave.

    The youngest leave first: the oldest have the fullest caches. One that still starts leaves before one that serves.
    """
    return sorted(replicas, key=lambda each: (each.state is ReplicaState.READY, -each.begun_ms, each.id))


def failures_after(replica: DedicatedReplica, failures: int) -> int:
    """Return the number of failed starts in a row after the end of a replica. A long service is a good start.

    The time of its load does not count: a base that loads for minutes and fails at its first request fails each time.
    """
    if not replica.has_failed:
        return failures
    is_short = replica.ready_ms is None or replica.seen_ms - replica.ready_ms < SHORT_LIFE_MS
    return failures + 1 if is_short else 0


def is_settled(replica: DedicatedReplica, failed_ms: int, now_ms: int) -> bool:
    """Return whether a replica shows that starts succeed again: ready since the last failure, and for a while."""
    if replica.state is not ReplicaState.READY or replica.ready_ms is None:
        return False
    return replica.ready_ms >= failed_ms and now_ms - replica.ready_ms >= SHORT_LIFE_MS


def pause_ms(failures: int) -> int:
    """Return the time from a failed start to the next one."""
    return 0 if failures <= 0 else int(min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** min(failures - 1, 20)))
