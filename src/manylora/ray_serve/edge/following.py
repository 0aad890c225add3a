"""The addresses of the replicas of a base in the mode `direct`, from their signals."""

import asyncio
import logging

from ray.serve.handle import DeploymentHandle

from manylora.fleet.edge.replicas import ListedReplicas
from manylora.ray_serve.edge.serve_handles import CARRIER_ERRORS

log = logging.getLogger(__name__)

ANSWER_WAIT_S = 5.0


async def follow(handle: DeploymentHandle, replicas: ListedReplicas, every_s: float) -> None:
    """Keep the list of the replicas' sockets as their signals say; it never returns.

    A replica that does not answer in time stays in the list: its link shows whether it lives. Errors of the controller
    change nothing.
    """
    while True:
        try:
            async with asyncio.timeout(ANSWER_WAIT_S):
                signals = await handle.broadcast("signal").results_async(return_exceptions=True)
        except TimeoutError:
            log.warning("fleet.no_signals within_s=%g", ANSWER_WAIT_S)
        except CARRIER_ERRORS as error:
            log.warning("fleet.no_signals error=%s", error)
        except Exception:  # no code awaits this task, and the edge finds no engine without it
            log.exception("fleet.signals_failed")
        else:
            replicas.set(each["endpoint"] for each in signals if isinstance(each, dict) and not each["draining"])
        await asyncio.sleep(every_s)
