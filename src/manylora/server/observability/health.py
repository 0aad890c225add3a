"""The health of the server: its engine makes progress with work, and answers a probe without work."""

import asyncio

from manylora.clock import Clock
from manylora.config.groups.server import ServerConfig
from manylora.engine.events import Finished
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.errors import ManyloraError
from manylora.ids import PROBE_FLOW, mint_request_id
from manylora.server.engine_client.client import EngineClient

PROBE_WAIT_S = 10.0
PROBE_VALID_S = 5.0


class Health:
    """Judges the engine. An answered probe is valid for a few seconds, so that frequent health checks are cheap.

    load_timeout_s  longest time of a load; a loader that is silent for less time may wait for a slow source
    has_generated   whether a probe has been answered
    """

    def __init__(self, engine: EngineClient, settings: ServerConfig, clock: Clock, *, load_timeout_s: float) -> None:
        self._engine = engine
        self._stall_s = settings.health_stall_s
        self._loader_stall_s = settings.health_stall_s + load_timeout_s
        self._clock = clock
        self._probe_lock = asyncio.Lock()  # one probe at a time; protects _probed_s
        self._probed_s: float | None = None
        self.has_generated = False

    async def is_well(self) -> bool:
        """Return whether the engine makes progress or, without work, answers a probe."""
        state = self._engine.health()
        if not state.is_up:
            return False
        if state.in_flight:
            return state.stalled_s < self._stall_s and state.loader_stalled_s < self._loader_stall_s
        return await self.probe()

    async def probe(self) -> bool:
        """Generate one token of the base model, and return whether that succeeds."""
        async with self._probe_lock:
            now_s = self._clock.monotonic_s()
            if self._probed_s is not None and now_s - self._probed_s < PROBE_VALID_S:
                return True
            try:
                async with asyncio.timeout(PROBE_WAIT_S):
                    finished = await self._generate_one()
            except (TimeoutError, ManyloraError):
                self._probed_s = None
                return False
            is_well = finished.failure is None
            self._probed_s = self._clock.monotonic_s() if is_well else None
            self.has_generated = self.has_generated or is_well
            return is_well

    async def _generate_one(self) -> Finished:
        stream = self._engine.generate(
            Request(
                id=mint_request_id(),
                flow=PROBE_FLOW,
                salt=PROBE_FLOW,
                tokens=(0,),
                adapter=None,
                sampling=SamplingParams(temperature=0.0),
                stop=StopParams(max_new_tokens=1),
            )
        )
        try:
            while True:
                await stream.ready()
                event = stream.take()
                if isinstance(event, Finished):
                    return event
        finally:
            stream.close()
