"""The generation service: it runs an order from its admission to its settlement."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Protocol, Self

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterState
from manylora.charging import Charge
from manylora.clock import Clock
from manylora.engine.events import FinishReason
from manylora.engine.request import Request
from manylora.errors import AdapterError, AdapterTextChanged, ManyloraError, RequestRejected
from manylora.http.callers import Caller
from manylora.rollouts.draw import ArmEnd
from manylora.server.access.access import Access, Admission
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.input_processor import PreparedPrompt
from manylora.server.generation.models import ModelHandle
from manylora.server.generation.order import Order
from manylora.server.generation.outputs import RequestOutputs, SequenceOutput
from manylora.server.generation.routing import ModelRouter, Naming, Target
from manylora.server.http.context import HttpContext, RequestState
from manylora.server.metering.meter import Meter, OpenUsage, Payer
from manylora.server.metering.records import NO_TIMINGS, Timings
from manylora.server.observability.metrics import Meters
from manylora.tenancy import called_adapter

MAX_ATTEMPTS = 3


class ArmListener(Protocol):
    """The listener to ends of requests that named an alias."""

    def note(self, order: Order, arrival: RequestState, end: ArmEnd) -> None:
        """Take the end of a request, after its reply. `arrival.draw` has its arms."""


class GenerationService:
    """Runs orders: enter → prepare → reserve → open usage → submit → read → settle. It belongs to one event loop."""

    def __init__(
        self,
        *,
        models: ModelRouter,
        admission: AdmissionControl,
        meters: Meters,
        clock: Clock,
        access: Access | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Without `access`, every caller may use everything. Without `meter`, usage is not recorded.

        `arms` listens to requests that name an alias.
        """
        self.models = models
        self.admission = admission
        self.meters = meters
        self.clock = clock
        self.access = access or Access(clock)
        self.meter = meter
        self.arms: ArmListener | None = None

    async def run(self, order: Order, context: HttpContext, reply: Callable[["Completion"], Awaitable[None]]) -> None:
        """Run an order and reply to it. Repeat it from its prompts on if its adapter's text has changed meanwhile.

        Raises the refusal or failure of the order, and `AdapterTextChanged` in the last attempt or after the reply's
        begin.
        """
        for number in range(1, MAX_ATTEMPTS + 1):
            try:
                async with Completion(self, order, context.arrival) as completion:
                    await reply(completion)
            except AdapterTextChanged:
                if context.has_begun or number == MAX_ATTEMPTS:
                    self._note_arms(order, context.arrival, ArmEnd.ERROR)
                    raise
            except asyncio.CancelledError:
                self._note_arms(order, context.arrival, ArmEnd.LEFT)
                raise
            except Exception:
                self._note_arms(order, context.arrival, ArmEnd.ERROR)
                raise
            else:
                self._note_arms(order, context.arrival, ArmEnd.OK)
                return

    def _note_arms(self, order: Order, arrival: RequestState, end: ArmEnd) -> None:
        if self.arms is not None and arrival.draw.drawn:
            self.arms.note(order, arrival, end)

    @contextmanager
    def admit(self, caller: Caller, num_sequences: int) -> Iterator[Admission]:
        """Hold places for the sequences in the caller's limits and in the server, before any work for them.

        `Admission.streams` of them may be under way at one time.
        Raises `LimitExceeded`, and as `AdmissionControl.wave_of` and `admit`.
        """
        wave = self.admission.wave_of(caller.tenant, num_sequences, is_batch=caller.is_batch)
        admission = self.access.enter(caller, sequences=wave)
        try:
            with self.admission.admit(caller.tenant, admission.streams, is_batch=caller.is_batch):
                yield admission
        finally:
            if not admission.is_metered:
                admission.settle(0, 0)

    @property
    def usage_failure(self) -> ManyloraError | None:
        """The reason why usage cannot be recorded and requests are refused now; None: usage can be recorded."""
        return None if self.meter is None else self.meter.failure


class Completion:
    """One attempt at an order, from its admission to its settlement. Use it with `async with`.

    Entering takes these in order: places in the caller's limits and in the server, the tokens of the prompts, a
    reservation of tokens and credit, a usage record, and sequences in the engine: as many as there are places, and
    another one at each end. Leaving notes the figures, aborts the sequences that have not ended and releases the rest.

    model    the base of the request, once entered
    prompts  the prepared prompts, once entered
    outputs  the outputs to read; call `settle` before the last part of the reply
    begun_s  moment of the end of validation: before the first submission, less the wait for the adapter's text
    """

    def __init__(self, service: GenerationService, order: Order, arrival: RequestState) -> None:
        self.order = order
        self.arrival = arrival
        self.model: ModelHandle = service.models.default
        self.prompts: tuple[PreparedPrompt, ...] = ()
        self.begun_s = 0.0
        self._service = service
        self._caller = arrival.caller
        self._held = ExitStack()  # places in the limits and in the server
        self._usage: OpenUsage | None = None
        self._waiting: deque[tuple[Request, int]] = deque()  # sequences not in the engine yet, with their prompts
        self._streams: list[SequenceStream] = []  # of sequences that reached the engine
        self._is_submitted = False

    async def __aenter__(self) -> Self:
        try:
            self._admission = await self._enter()
            target, wave = await self._find_target()
            self.prompts = await self.model.inputs.prepare(self.order, target.adapter, self._caller)
            await self._reserve()
            self._open_usage()
            begun = self._begin(wave)
            self._is_submitted = True
            self.outputs = RequestOutputs(begun, self._begin_next, self._service.clock)
        except BaseException as error:
            self._give_back(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, AdapterTextChanged):
                self.model.inputs.forget_text(self.adapter)
            if isinstance(error, AdapterError):
                self._service.models.forget(self.adapter)
            if isinstance(error, ManyloraError) or (error is None and self._caller.is_batch):
                self._release()
                await self._settled()
        finally:
            self._note()
            self._give_back(error)

    # ── entering ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _enter(self) -> Admission:
        admission = self._held.enter_context(self._service.admit(self._caller, self.num_sequences))
        await self._service.access.share(admission)
        if self.num_sequences > admission.streams:
            self._held.enter_context(self._service.admission.hold_prompts(self._caller.tenant, self.order.size))
        return admission

    async def _find_target(self) -> tuple[Target, int]:
        """Return the base and the adapter of the request, and the number of its sequences that may be under way.

        The places of a base that the names tell are held before an engine is asked about the adapter, which may fetch
        it.
        """
        models = self._service.models
        named = await models.resolved(self._naming(), self._caller)
        wave = None if named.asked is None else await self._enter_base(named.asked)
        target = await models.target_of(named, self._caller)
        return target, await self._enter_base(target.model) if wave is None else wave

    async def _enter_base(self, model: ModelHandle) -> int:
        """Hold places of the base, in the caller's limits and in the server.

        Return the number of sequences that may be under way at one time.
        """
        self.model = model
        self._service.access.enter_base(self._admission, self.model.name)
        await self._service.access.share(self._admission)
        streams, places, caller = self._admission.streams, self.model.places, self._caller
        if places is None or caller.is_shadow:  # a shadow takes no place of a request with a waiting caller
            return streams
        wave = places.wave_of(caller.tenant, streams, is_batch=caller.is_batch)
        self._held.enter_context(places.admit(caller.tenant, wave, is_batch=caller.is_batch))
        return wave

    def _naming(self) -> Naming:
        order = self.order
        return Naming(
            name=order.adapter_name,
            fields=order.adapter,
            field=order.adapter_field,
            model=order.model,
            deployment=self.arrival.deployment,
            draw=self.arrival.draw,
        )

    async def _reserve(self) -> None:
        caller = self._caller
        await self._service.access.reserve(
            self._admission,
            base=self.model.name,
            adapter=None if (ref := self.adapter) is None else called_adapter(caller.tenant, ref.id, ref.tenant),
            prompt_tokens=self.num_prompt_tokens,
            budget_tokens=sum(prompt.num_sequences * prompt.stop.max_new_tokens for prompt in self.prompts),
        )

    def _open_usage(self) -> None:
        """Write the begin of the usage record, which lists all sequences."""
        caller, meter = self._caller, self._service.meter
        numbered = [
            (request, number) for number, prompt in enumerate(self.prompts) for request in prompt.requests(caller)
        ]
        if meter is not None:
            payer = Payer(
                tenant=caller.tenant,
                key=caller.key,
                request_id=self.arrival.request_id,
                is_batch=caller.is_batch,
                alias=self.arrival.draw.alias,
                is_shadow=caller.is_shadow,
            )
            is_streamed = self.order.is_stream
            self._usage = meter.open(
                payer,
                numbered,
                base=self.model.name,
                is_streamed=is_streamed,
                owner=self,
                journal=self.model.journal,
            )
            self._admission.is_metered = True
        self._waiting.extend(numbered)
        # The engine is another process, which may begin and even answer before the next line runs.
        self.begun_s = self._service.clock.monotonic_s() - 1e-3 * max(each.rules.waited_ms for each in self.prompts)

    def _begin(self, count: int) -> list[SequenceOutput]:
        begun = [self._begin_next() for _ in range(count)]
        return [sequence for sequence in begun if sequence is not None]

    def _begin_next(self) -> SequenceOutput | None:
        """Submit the next sequence and return its reader; None: all have been submitted."""
        if not self._waiting:
            return None
        request, number = self._waiting[0]
        self._streams.append(self.model.engine.generate(request))
        self._waiting.popleft()
        prompt = self.prompts[number]
        return SequenceOutput(
            len(self._streams) - 1,
            self._streams[-1],
            prompt.rules.tokenizer,
            self.order.form,
            keeps_stop=prompt.keeps_stop,
            shown=prompt.shown_tokens,
        )

    def _withdraw_waiting(self) -> None:
        """Give up the sequences that have not reached the engine."""
        if self._usage is not None and self._service.meter is not None and self._waiting:
            self._service.meter.withdraw(self._usage, [request.id for request, _ in self._waiting])
        self._waiting.clear()

    # ── facts of the request ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def adapter(self) -> AdapterRef | None:
        """The adapter of all prompts; None is the base model."""
        return self.prompts[0].adapter

    @property
    def model_name(self) -> str:
        """The name of the base model or the adapter, as the caller spells it."""
        return self.adapter.id_for(self.arrival.tenant) if self.adapter else self.model.name

    @property
    def num_sequences(self) -> int:
        """Number of sequences of all prompts, begun or not."""
        return self.order.num_sequences * len(self.order.prompts)

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt.tokens) for prompt in self.prompts)

    @property
    def num_cached_tokens(self) -> int:
        """Number of cached prompt tokens. A prompt counts once, with its first sequence."""
        firsts = self._streams[:: self.order.num_sequences]
        return sum(stream.finished.counts.cached_tokens for stream in firsts if stream.finished is not None)

    @property
    def adapter_tier(self) -> str | None:
        """The tier in which the request found its adapter; None: it has no adapter, or the tier is not known yet."""
        adapter, use = self.adapter, self.outputs.adapter_use
        return None if adapter is None or use is None else tier_name(use.tier, self.model.served.device, adapter.source)

    def limit_headers(self) -> dict[str, str]:
        """The `x-ratelimit-…` headers as the caller's limits stand now."""
        return self._admission.headers()

    def times_ms(self) -> dict[str, float]:
        """The request's times in milliseconds; of several sequences, those of the slowest."""
        ends, use = self.outputs.finished, self.outputs.adapter_use
        now_s, first_s = self._service.clock.monotonic_s(), self.outputs.first_token_s
        return {
            "queue_ms": round(max((end.queue_ms or 0.0 for end in ends), default=0.0), 3),
            "adapter_load_ms": round(use.load_ms if use else 0.0, 3),
            "time_to_first_token_ms": round(self._since_arrival_ms(now_s if first_s is None else first_s), 3),
            "inference_ms": round(max((end.run_ms or 0.0 for end in ends), default=0.0), 3),
            "total_ms": round(self._since_arrival_ms(now_s), 3),
        }

    def _since_arrival_ms(self, moment_s: float) -> float:
        return 1e3 * (moment_s - self.arrival.arrived_s)

    # ── usage ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def settle(self) -> None:
        """Wait until the usage is on the disk; call it after the ends of all sequences.

        The usage of a batch line is written after the reply, which makes the line's result durable.
        """
        if not self._caller.is_batch:
            await self._settled()

    async def _settled(self) -> None:
        if self._usage is not None and self._service.meter is not None:
            await self._service.meter.settle(self._usage)

    def _release(self, *, is_free: bool = False) -> None:
        """Let the usage of a batch line be written. `is_free`: the line has no result and costs nothing."""
        if self._usage is not None and self._service.meter is not None and self._caller.is_batch:
            self._service.meter.release(self._usage, is_free=is_free)

    def timings(self) -> Timings:
        """Return the timings for the usage record."""
        if not self._is_submitted:
            return NO_TIMINGS
        outputs = self.outputs
        outputs.note_arrived()
        use, first_s = outputs.adapter_use, outputs.first_token_s
        return Timings(
            digest=None if use is None else use.digest,
            tier=self.adapter_tier,
            queue_ms=outputs.queue_ms,
            load_ms=None if use is None else use.load_ms,
            first_token_ms=None if first_s is None else self._since_arrival_ms(first_s),
            total_ms=self._since_arrival_ms(self._service.clock.monotonic_s()),
        )

    def note_charge(self, charge: Charge) -> None:
        """Release the reserved tokens and credit that are not charged."""
        self._admission.settle(
            charge.charged_prompt_tokens, charge.charged_completion_tokens, charge.charged_cached_tokens
        )

    # ── leaving ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self) -> None:
        """Write the request's figures to its log line and the metrics."""
        outputs, times_ms = self.outputs, self.times_ms()
        reasons = sorted({end.reason.value for end in outputs.finished})
        self.arrival.noted |= {
            "adapter": self.adapter.full_id if self.adapter else None,
            "prompt_tokens": self.num_prompt_tokens,
            "generated_tokens": outputs.num_generated_tokens,
            "finish_reason": ",".join(reasons) or "disconnect",
            **times_ms,
        }
        if self._caller.is_batch:
            return  # no caller waits for it: its times would hide those of requests whose callers do
        self._service.meters.note_work(
            [(len(prompt.tokens), prompt.stop.max_new_tokens) for prompt in self.prompts],
            outputs.num_generated_tokens,
            times_ms,
            self.begun_s - self.arrival.arrived_s,
            is_whole=len(outputs.finished) == self.num_sequences,
        )

    def _give_back(self, error: BaseException | None) -> None:
        reason = FinishReason.DISCONNECT if error is None else self._why_left(error)
        self._withdraw_waiting()
        for stream in self._streams:
            stream.close(reason)
        self._release(is_free=isinstance(error, asyncio.CancelledError))
        if self._is_submitted and self._usage is None:
            self._admission.settle(self.num_prompt_tokens, self.outputs.num_generated_tokens)
        self._held.close()

    def _why_left(self, error: BaseException) -> FinishReason:
        """Return the finish reason of sequences under way. A caller pays for ends that it causes, not for faults.

        A route is cancelled when its caller leaves, and when the server itself ends.
        """
        if isinstance(error, asyncio.CancelledError):
            return FinishReason.DISCONNECT if self.arrival.has_left else FinishReason.SHUTDOWN
        return FinishReason.ABORT if isinstance(error, RequestRejected) else FinishReason.INCOMPLETE


def tier_name(tier: str, device: str, source: SourceName) -> str:
    """Return the public name of the tier in which a request found its adapter. The device tier of a CPU is the host's.

    An adapter in no tier comes from its source: from the disk for a local directory, otherwise from a remote source.
    """
    match tier:
        case AdapterState.ON_DEVICE.value:
            return "gpu" if device.startswith("cuda") else "cpu"
        case AdapterState.IN_HOST.value:
            return "cpu"
        case AdapterState.ON_DISK.value:
            return "disk"
    return "disk" if source is SourceName.LOCAL else "remote"
