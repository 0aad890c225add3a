"""One question to every replica of a deployment: each has its own time to answer, and the silent ones are named."""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from manylora.ids import ReplicaId

GRACE_S = 1.0
"""Seconds that a replica gets which did not answer the question before, where all others have answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The answers to one question.

    values  of the replicas that answered, by their names
    silent  the replicas that run and did not answer, in the order of their names
    """

    values: Mapping[ReplicaId, Any] = field(default_factory=dict)  # what each method returns
    silent: tuple[ReplicaId, ...] = ()


async def ask_each(
    handle: Any,  # Ray's `DeploymentHandle`: this module does without Ray
    method: str,
    *args: object,
    within_s: float,
    known_silent: Collection[ReplicaId] = (),
) -> Answers:
    """Call a method of every replica, which returns `(name, value)`. An answer after `within_s` seconds does not count.

    A call that raises is no answer. Replicas of `known_silent` alone keep the answers of the others for `GRACE_S` at
    most. Raises Serve's error where no replica runs.
    """
    calls: dict[asyncio.Task[Any], Any] = {}
    try:
        async with asyncio.timeout(within_s):
            # `DeploymentBroadcastResponse` has no public way to one replica's answer before that of the last one.
            results = await handle.broadcast(method, *args)._fetch_replica_results_async()
            calls = {asyncio.create_task(result.get_async()): result for result in results}
            waiting: set[asyncio.Task[Any]] = (await asyncio.wait(calls, timeout=GRACE_S))[1]
            while len(waiting) > len({*known_silent}.intersection(running(handle)) - {*_values(calls)}):
                waiting = (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[1]
    except TimeoutError:
        pass
    finally:
        for call, result in calls.items():
            if call.cancel():
                result.cancel()
    values = _values(calls)
    return Answers(values=values, silent=tuple(sorted(running(handle) - {*values})))


def running(handle: Any) -> frozenset[ReplicaId]:
    """Return the names of the replicas that run, as Serve's router knows them; before its start, of none."""
    # No public call of Ray 2.60 names them.
    router = None if handle._router is None else handle._router._asyncio_router.request_router
    return frozenset() if router is None else frozenset(ReplicaId(each.unique_id) for each in (*router.curr_replicas,))


def _values(calls: Collection[asyncio.Task[Any]]) -> dict[ReplicaId, Any]:
    """Return the values of the calls that have ended well."""
    done = [call for call in calls if call.done() and not call.cancelled()]
    return dict(call.result() for call in done if call.exception() is None)
