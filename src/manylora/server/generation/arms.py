"""Arms of aliases at the edge: counts of their answers, and the shadows, which run after them.

A shadow repeats an answered request with another version, at batch priority, when the reply has been sent. It waits in
no queue of the caller, takes nothing of its limits and credit, and its result goes nowhere: its tokens, times and end
are in a usage record that costs nothing. While `MOST_SHADOWS` run, or `MOST_OF_A_TENANT` of its
tenant, it is dropped.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import replace

from manylora.clock import Clock
from manylora.errors import ManyloraError, Overloaded
from manylora.ids import mint_request_id
from manylora.rollouts.draw import ArmDraw, ArmEnd, DrawnArm
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.order import Order
from manylora.server.generation.routing import ModelRouter
from manylora.server.generation.service import Completion, GenerationService
from manylora.server.http.context import RequestState
from manylora.server.metering.meter import Meter
from manylora.server.names.adapter_fields import AdapterFields
from manylora.server.observability.metrics import Meters

log = logging.getLogger(__name__)

MOST_SHADOWS = 32
"""Shadows of one server at one time: each holds a request in memory."""
MOST_OF_A_TENANT = 8
"""Shadows of one tenant at one time: they cost nothing, so that one tenant's would take all places."""
PART_OF_BATCHES = 2
"""Requests at batch priority have this part of the places at most."""
ANSWER, SHADOW = "answer", "shadow"


class Arms:
    """Counts the ends of requests to aliases, and runs shadows. It belongs to one event loop."""

    def __init__(self, models: ModelRouter, meters: Meters, clock: Clock, meter: Meter | None = None) -> None:
        """`meter` as of `GenerationService`."""
        # Places and limits of their own: a shadow keeps no caller out.
        places = AdmissionControl(PART_OF_BATCHES * max(1, MOST_SHADOWS))
        self._service = GenerationService(models=models, admission=places, meters=meters, clock=clock, meter=meter)
        self._meters = meters
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: Counter[str] = Counter()  # by tenant

    def note(self, order: Order, arrival: RequestState, end: ArmEnd) -> None:
        """Count the end of a request for each of its arms, and begin its shadow if it was answered."""
        for drawn in arrival.draw.drawn.values():
            self._meters.note_arm(drawn, ANSWER, end)
        if end is not ArmEnd.OK or len(arrival.draw.drawn) != 1 or order.adapter.names_several:
            return
        [drawn] = arrival.draw.drawn.values()
        if drawn.shadow is None:
            return
        tenant = arrival.caller.tenant
        if len(self._tasks) >= MOST_SHADOWS or self._running[tenant] >= MOST_OF_A_TENANT:
            self._meters.note_arm(_shadow_of(drawn), SHADOW, "dropped")
            return
        task = asyncio.create_task(self._run(order, arrival, _shadow_of(drawn)))
        self._tasks.add(task)
        self._running[tenant] += 1
        task.add_done_callback(lambda done: self._forget(done, tenant))

    def _forget(self, task: asyncio.Task[None], tenant: str) -> None:
        self._tasks.discard(task)
        self._running[tenant] -= 1
        if not self._running[tenant]:
            del self._running[tenant]

    async def stop(self) -> None:
        """End the shadows under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until no shadow is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, order: Order, arrival: RequestState, shadow: DrawnArm) -> None:
        repository = shadow.alias.rpartition("/")[0]
        name = f"pbase://{shadow.owner}/{repository}/{shadow.version}"
        own = replace(order, adapter_name=name, adapter=AdapterFields(), is_stream=False, adapter_field="adapter_id")
        state = RequestState(
            request_id=mint_request_id(),
            arrived_s=self._clock.monotonic_s(),
            caller=replace(arrival.caller, limits=(), is_batch=True, is_shadow=True),
            path_tenant=arrival.path_tenant,
            deployment=arrival.deployment,
            draw=ArmDraw(drawn=shadow),
        )
        try:
            async with Completion(self._service, own, state) as completion:
                await completion.outputs.collect()
        except Overloaded:
            self._meters.note_arm(shadow, SHADOW, "dropped")
        except ManyloraError as error:
            log.info("shadow.failed alias=%s version=%d code=%s", shadow.alias, shadow.version, error.row.code)
            self._meters.note_arm(shadow, SHADOW, ArmEnd.ERROR)
        except Exception:  # no caller waits for it
            log.exception("shadow.failed alias=%s version=%d", shadow.alias, shadow.version)
            self._meters.note_arm(shadow, SHADOW, ArmEnd.ERROR)
        else:
            self._meters.note_arm(shadow, SHADOW, ArmEnd.OK)


def _shadow_of(drawn: DrawnArm) -> DrawnArm:
    assert drawn.shadow is not None, "the caller has looked"
    return replace(drawn, version=drawn.shadow, shadow=None)
