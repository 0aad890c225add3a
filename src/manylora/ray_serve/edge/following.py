"""The addresses of the replicas of a base in the mode `direct`, from their signals."""

import asyncio
import logging
from typing import Any

from manylora.fleet.edge.replicas import ListedReplicas
from manylora.ids import ReplicaId
from manylora.ray_serve.each_replica import ask_each

log = logging.getLogger(__name__)

ANSWER_WAIT_S = 5.0


async def follow(
    handle: Any,  # Ray's `DeploymentHandle`
    replicas: ListedReplicas,
    every_s: float,
    carrier_errors: tuple[type[Exception], ...],
) -> None:
    """Keep the list of the replicas' sockets as their signals say; it never returns.

    A replica that does not answer in time, or whose call fails, stays in the list with its last address: its link
    shows whether it lives. It leaves the list with Serve's own. Errors of the controller change nothing.
    """
    endpoints: dict[ReplicaId, str] = {}  # empty: it is given back
    silent: tuple[ReplicaId, ...] = ()
    while True:
        try:
            answers = await ask_each(handle, "signal", within_s=ANSWER_WAIT_S, known_silent=silent)
        except carrier_errors as error:
            log.warning("fleet.no_signals error=%s", error)
        except Exception:  # no code awaits this task, and the edge finds no engine without it
            log.exception("fleet.signals_failed")
        else:
            for name in {*answers.silent} - {*silent}:
                log.warning("fleet.silent replica=%s within_s=%g", name, ANSWER_WAIT_S)
            silent = answers.silent
            endpoints = {name: endpoints[name] for name in silent if name in endpoints}
            endpoints |= {name: "" if each["draining"] else each["endpoint"] for name, each in answers.values.items()}
            replicas.set(endpoints[name] for name in sorted(endpoints) if endpoints[name])
        await asyncio.sleep(every_s)
