"""What every inference route shares: the gate, the link, what a request may use, and what is noted when it is over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from manylora.adapter_ref import AdapterRef
from manylora.charging import Charge
from manylora.clock import Clock
from manylora.engine.events import FinishReason
from manylora.engine.request import Request
from manylora.errors import AdapterTextChanged, ManyloraError, RequestRejected
from manylora.server.access.access import Access, Admission
from manylora.server.engine_client.link import EngineLink
from manylora.server.generation.adapter_texts import AdapterTexts, TextRules
from manylora.server.generation.admission import AdmissionControl, PreparedPrompt
from manylora.server.generation.outputs import RequestOutputs, begin
from manylora.server.generation.reply_headers import tier_name, timings_of
from manylora.server.http.context import HttpContext
from manylora.server.metering.meter import Meter, OpenUsage, Payer, Timings
from manylora.server.observability.metrics import Meters

MAX_ATTEMPTS = 3


class GenerationService:
    """Opens work for a route and, when it is over, writes its figures to the log line, the metrics and the meter."""

    def __init__(
        self,
        gate: AdmissionControl,
        link: EngineLink,
        meters: Meters,
        clock: Clock,
        access: Access | None = None,
        meter: Meter | None = None,
        *,
        texts: AdapterTexts,
    ) -> None:
        """`meter` None: usage is not recorded, as in the library and in tests."""
        self.texts = texts
        self.gate = gate
        self.link = link
        self.clock = clock
        self._meters = meters
        self._access = access or Access(clock)
        self._meter = meter

    async def answer(self, context: HttpContext, attempt: Callable[[], Awaitable[None]]) -> None:
        """Answer a request; once more, from the prompt on, where its adapter was replaced with another text meanwhile.

        Raises as `attempt`; `AdapterTextChanged` if that happens again and again, or after the reply has begun.
        """
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                await attempt()
            except AdapterTextChanged:
                if context.has_begun:
                    raise
            else:
                return
        await attempt()

    async def rules(self, context: HttpContext, adapter: AdapterRef | None) -> TextRules:
        """Return the rules with which a prompt for an adapter is made. Raises as `AdapterTexts.of`."""
        caller = context.arrival.caller
        return await self.texts.of(adapter, caller.tenant, caller.weight)

    @property
    def usage_failure(self) -> ManyloraError | None:
        """Why no request can be recorded now, and none is served; None: they can."""
        return None if self._meter is None else self._meter.failure

    @contextmanager
    def admit(self, context: HttpContext, num_sequences: int) -> Iterator[Admission]:
        """Hold a place for each sequence, in the caller's limits and in the house, before anything is read or computed.

        Raises what refuses it: a limit, a house that is full or closing.
        """
        caller = context.arrival.caller
        admission = self._access.enter(caller, sequences=num_sequences)
        try:
            with self.gate.admit(caller.tenant, num_sequences):
                yield admission
        finally:
            if not admission.is_metered:
                admission.settle(0, 0)

    @asynccontextmanager
    async def begin(
        self, context: HttpContext, admission: Admission, drafts: Sequence[PreparedPrompt], *, is_stream: bool
    ) -> AsyncIterator[RequestOutputs]:
        """Take what a request may use at most, open its sequences, and see that its usage is recorded once.

        Raises what refuses it: a limit, the credit, a disk that takes no record, an engine that is down.
        """
        caller = admission.caller
        await self._access.reserve(
            admission,
            prompt_tokens=sum(len(draft.tokens) for draft in drafts),
            budget_tokens=sum(draft.num_sequences * draft.stop.max_new_tokens for draft in drafts),
        )
        numbered = [
            (request, number)
            for number, draft in enumerate(drafts)
            for request in self.gate.expand(draft, caller.tenant, weight=caller.weight)
        ]
        holder: list[RequestOutputs] = []
        usage = self._open(context, numbered, admission, holder, is_stream=is_stream)
        admission.is_metered = usage is not None

        def withdraw(ids: Sequence[str]) -> None:
            if usage is not None and self._meter is not None:
                self._meter.withdraw(usage, [request.id for request, _ in numbered if request.id in ids])

        try:
            requests = [request for request, _ in numbered]
            why_left = partial(_why_left, context)
            with begin(self.link, self.gate, drafts, requests, self.clock, withdraw, why_left) as work:
                holder.append(work)
                work.limit_headers = admission.headers
                if usage is not None and self._meter is not None:
                    meter, open_usage = self._meter, usage
                    work.settle = lambda: meter.settle(open_usage)
                try:
                    yield work
                except ManyloraError as error:
                    if isinstance(error, AdapterTextChanged):
                        self.texts.forget(drafts[0].adapter)
                    await work.settle()
                    raise
                finally:
                    self._note(context, work)
        finally:
            if usage is None and holder:
                admission.settle(holder[0].num_prompt_tokens, holder[0].num_generated_tokens)

    def _open(
        self,
        context: HttpContext,
        numbered: Sequence[tuple[Request, int]],
        admission: Admission,
        holder: Sequence[RequestOutputs],
        *,
        is_stream: bool,
    ) -> OpenUsage | None:
        """Write down that a request begins; `holder` has its work as soon as there is one."""
        if self._meter is None:
            return None
        arrival = context.arrival

        def charged(charge: Charge) -> None:
            admission.settle(
                charge.charged_prompt_tokens, charge.charged_completion_tokens, charge.charged_cached_tokens
            )

        return self._meter.open(
            Payer(tenant=arrival.caller.tenant, key=arrival.caller.key, request_id=arrival.request_id),
            numbered,
            base=self.gate.served.model_id,
            is_streamed=is_stream,
            timings=lambda: self._timings(context, holder[0]) if holder else Timings(),
            on_charge=charged,
        )

    def _timings(self, context: HttpContext, work: RequestOutputs) -> Timings:
        work.note_arrived()
        adapter, use = work.drafts[0].adapter, work.adapter_use
        first_s = work.first_token_s
        arrived_s = context.arrival.arrived_s
        return Timings(
            digest=None if use is None else use.digest,
            tier=None
            if use is None or adapter is None
            else tier_name(use.tier, self.gate.served.device, adapter.source),
            queue_ms=work.queue_ms,
            load_ms=None if use is None else use.load_ms,
            first_token_ms=None if first_s is None else 1e3 * (first_s - arrived_s),
            total_ms=1e3 * (self.clock.monotonic_s() - arrived_s),
        )

    def _note(self, context: HttpContext, work: RequestOutputs) -> None:
        adapter = work.drafts[0].adapter
        timings = timings_of(work, context)
        reasons = sorted({g.finished.reason.value for g in work.generations if g.finished is not None})
        context.arrival.noted |= {
            "adapter": adapter.full_id if adapter else None,
            "prompt_tokens": work.num_prompt_tokens,
            "generated_tokens": work.num_generated_tokens,
            "finish_reason": ",".join(reasons) or "disconnect",
            **timings,
        }
        validation_s = work.begun_s - context.arrival.arrived_s
        is_whole = all(generation.finished is not None for generation in work.generations)
        sizes = [(len(draft.tokens), draft.stop.max_new_tokens) for draft in work.drafts]
        self._meters.note_work(sizes, work.num_generated_tokens, timings, validation_s, is_whole=is_whole)


def _why_left(context: HttpContext, error: BaseException) -> FinishReason:
    """Why sequences that are under way are ended here: their caller pays for what he makes end, and for no fault.

    A route is cancelled when its caller leaves, and when the server itself ends.
    """
    if isinstance(error, asyncio.CancelledError):
        return FinishReason.DISCONNECT if context.arrival.has_left else FinishReason.SHUTDOWN
    return FinishReason.ABORT if isinstance(error, RequestRejected) else FinishReason.INCOMPLETE
