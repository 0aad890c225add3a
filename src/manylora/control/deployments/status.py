"""The state of a dedicated deployment in the words of Predibase's API, from its replicas."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from manylora.control.deployments.replicas import DedicatedReplica, ReplicaState, Wish, number_needed

ASLEEP = "no replica is needed; the first request starts one"


class DeploymentState(StrEnum):
    """States of Predibase's API.

    PENDING       no replica yet, and none is starting
    INITIALIZING  the first replica is starting
    READY         a replica answers
    STANDBY       it has no replica and needs none; the first request starts one
    STOPPED       it is deleted, or its tenant may not run it
    ERRORED       the last start has failed; `detail` has the reason and the time of the next one
    UPDATING      replicas of older settings answer while those of the present ones start
    """

    PENDING = "pending"
    INITIALIZING = "initializing"
    READY = "ready"
    STANDBY = "standby"
    STOPPED = "stopped"
    ERRORED = "errored"
    UPDATING = "updating"


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a deployment, and why it is in it."""

    state: DeploymentState
    detail: str = ""


def status_of(
    wish: Wish,
    replicas: Sequence[DedicatedReplica],
    now_ms: int,
    *,
    failures: int,
    last_reason: str,
    why_unwanted: str | None,
) -> Status:
    """Return the state of a deployment.

    Args:  replicas      its live ones, and those that ended in this round
           failures      failed starts in a row
           last_reason   the reason of the last failure, or the detail that was stored with it
           why_unwanted  the reason why it should have no replica; None: it may have some
    """
    if why_unwanted is not None:
        return Status(DeploymentState.STOPPED, why_unwanted)
    ready = [each for each in replicas if each.state is ReplicaState.READY]
    starting = [each for each in replicas if each.state is ReplicaState.STARTING]
    if ready:
        is_old = all(each.form != wish.form for each in ready)
        return Status(DeploymentState.UPDATING if is_old else DeploymentState.READY)
    if starting:
        return Status(DeploymentState.INITIALIZING, last_reason if failures else "a replica is starting")
    if failures and wish.retry_ms > now_ms:
        return Status(DeploymentState.ERRORED, last_reason)
    if not number_needed(wish, now_ms):
        return Status(DeploymentState.STANDBY, ASLEEP)
    return Status(DeploymentState.PENDING, last_reason if failures else "a replica starts next")
