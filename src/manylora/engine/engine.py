"""The engine's one loop body: poll adapters → aborts → plan → run → commit."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock
from manylora.engine.adapter_port import AdapterState, AdapterStore
from manylora.engine.events import (
    AdapterUse,
    EngineStats,
    Finished,
    FinishReason,
    StepEvents,
    TokenEvent,
)
from manylora.engine.execution.runner import Runner
from manylora.engine.execution.sampler import Drawn
from manylora.engine.penalties import Penalties
from manylora.engine.request import Request
from manylora.engine.scheduling.pins import AdapterPins, unknown_tokens
from manylora.engine.scheduling.scheduler import Chunk, Plan, Scheduler
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.stopping import Stop, StopChecker, TextStream
from manylora.engine.texts import TextQuestions
from manylora.errors import (
    ContextLengthExceeded,
    EngineFault,
    InvalidParameter,
    ManyloraError,
    Overloaded,
    QueueTimeout,
    Unavailable,
)
from manylora.failure import Failure
from manylora.ids import Flow, RequestId
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.kernels.interface import Profile
from manylora.models.text.adapter_text import AddedToken
from manylora.sharing import has_place
from manylora.usage import Counts

log = logging.getLogger(__name__)

_LOADED = (AdapterState.IN_HOST, AdapterState.ON_DEVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What a request may ask for.

    max_model_len  positions of one sequence, prompt and completion together
    vocab          token ids are in [0, vocab)
    max_waiting    requests accepted but not running that one flow alone may have; see `sharing`
    max_queue_s    a request that has not begun after this long is ended with `QueueTimeout`
    """

    max_model_len: int
    vocab: int
    max_waiting: int
    max_queue_s: float


class Engine:
    """Synchronous; one thread; no clock, file or socket of its own. `step` does everything.

    Every submitted request ends in exactly one `Finished`, returned by a later `step` (or by `shutdown`).
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        store: AdapterStore,
        pins: AdapterPins,
        clock: Clock,
        limits: EngineLimits,
        end_of_sequence: Collection[int],
        open_text: Callable[[tuple[AddedToken, ...], bool], TextStream],
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._store = store
        self._pins = pins
        self._clock = clock
        self.limits = limits
        self._end_of_sequence = frozenset(end_of_sequence)
        self._open_text = open_text
        self.texts = TextQuestions(store, clock, max_wait_s=limits.max_queue_s)
        self._loading: dict[RequestId, Sequence] = {}  # their adapter is on its way; outside the fair queue
        self._queued: dict[RequestId, Sequence] = {}  # in the scheduler: waiting or running
        self._wanted: Counter[AdapterRef] = Counter()  # adapters of sequences that hold no pin yet
        self._unread: dict[AdapterRef, list[Sequence]] = {}  # queued for room, before their adapter was read
        self._is_stuck = False  # the last step had nothing to compute
        self._tokens: list[TokenEvent] = []
        self._finished: list[Finished] = []
        self._next_expiry_s = 0.0
        self._totals: Counter[str] = Counter()

    # ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything: requests under way, or events not yet returned."""
        return bool(self._loading or self._queued or self._finished or self.texts.has_work)

    @property
    def is_waiting_for_adapters(self) -> bool:
        """Whether every request under way waits for an adapter, so that the caller may sleep a little between steps."""
        return self._is_stuck and bool(self._loading or self._queued or self.texts)

    def submit(self, request: Request) -> None:
        """Take a request. One that cannot be served ends at the next step, with the error that says why."""
        if (error := self._objection(request)) is not None:
            self._finished.append(_ended_unrun(request, FinishReason.REJECTED, error))
            return
        sequence = Sequence(
            request,
            StopChecker(request.stop, self._end_of_sequence, partial(self._open_text, request.stop.added_tokens)),
            Penalties.of(request.sampling, request.tokens),
            self._clock.monotonic_s() - request.waited_ms / 1e3,
        )
        self._is_stuck = False
        if request.adapter is None:
            self._enqueue(sequence)
            return
        state = self._store.want(request.adapter, request.flow).value
        sequence.tier_on_arrival = request.found_in or state
        self._wanted[request.adapter] += 1
        self._loading[request.id] = sequence

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        """End a request now; its rows, blocks and pins are free before the next step. Unknown ids are ignored."""
        sequence = self._loading.get(request_id) or self._queued.get(request_id)
        if sequence is not None:
            self._finish(sequence, reason)

    def step(self) -> StepEvents:
        """Advance everything by one step and return what it committed."""
        self._poll_adapters()
        self._expire()
        plan = self._scheduler.plan()
        for sequence, error in self._pins.take_faults():
            self._finish(sequence, FinishReason.REJECTED, error)
        self._totals["steps"] += 1
        self._totals["preemptions"] += len(plan.preempted)
        self._is_stuck = not plan.chunks
        if plan.chunks:
            self._note_admissions(plan)
            self._run(plan)
        return self._take_events()

    def tend(self) -> bool:
        """Let the adapter store move while there is no other work; whether it should be called again soon.

        Adapters that an operator asked for are brought, and idle ones go, without a request to make a step for.
        """
        self._store.poll()
        return self._store.is_busy

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin what an operator asks of one adapter. Raises a `ManyloraError` when that cannot be."""
        return self._store.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """One adapter as an operator sees it. Raises `AdapterNotFound`."""
        return self._store.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Every adapter there is something to tell of."""
        return self._store.infos()

    def shutdown(self) -> StepEvents:
        """End every request under way and stop the loaders."""
        error = Unavailable("the server is shutting down; repeat the request")
        for sequence in [*self._loading.values(), *self._queued.values()]:
            self._finish(sequence, FinishReason.SHUTDOWN, error)
        self.close()
        return self._take_events()

    def close(self) -> None:
        """Stop the adapter store's loaders; the engine is not used afterwards."""
        self._store.close()

    def stats(self) -> EngineStats:
        pool, totals = self._scheduler.pool, self._totals
        return EngineStats(
            waiting=self._scheduler.num_waiting,
            loading=len(self._loading) + len(self.texts),
            running=len(self._scheduler.running),
            kv_blocks_total=pool.num_blocks,
            kv_blocks_used=pool.num_blocks - pool.num_free - pool.num_lent,
            kv_blocks_cached=pool.num_cached,
            kv_blocks_lent=pool.num_lent,
            steps=totals["steps"],
            preemptions=totals["preemptions"],
            prompt_tokens=totals["prompt_tokens"],
            cached_tokens=totals["cached_tokens"],
            completion_tokens=totals["completion_tokens"],
            draft_tokens=totals["draft_tokens"],
            accepted_tokens=totals["accepted_tokens"],
            adapters=self._store.stats(),
        )

    def start_profile(self) -> Profile | None:
        """Time the kernels of every step from now on, by kind; None if the back end cannot."""
        return self._runner.start_profile()

    def check(self) -> None:
        """Raise AssertionError if something was lost or leaked; for tests and for an idle engine."""
        self._scheduler.pool.check()
        if not self.has_work:
            pool = self._scheduler.pool
            assert pool.num_free + pool.num_lent == pool.num_blocks, "an idle engine holds blocks"
            assert not +self._wanted, "an idle engine wants adapters"
            assert not self._scheduler.running, "an idle engine runs sequences"

    # ── steps of a step ──────────────────────────────────────────────────────────────────────────────────────────

    def _objection(self, request: Request) -> ManyloraError | None:
        """Why this request cannot be served at all, or now."""
        limits, prompt, budget = self.limits, len(request.tokens), request.stop.max_new_tokens
        pool = self._scheduler.pool
        longest = min(limits.max_model_len, pool.num_blocks * pool.block_size)
        if prompt == 0:
            return InvalidParameter("`inputs` cannot be empty", parameter="inputs")
        if prompt + budget > longest:
            return ContextLengthExceeded(
                f"`inputs` tokens + `max_new_tokens` must be <= {longest}. "
                f"Given: {prompt} `inputs` tokens and {budget} `max_new_tokens`",
                parameter="max_new_tokens",
            )
        known = limits.vocab + (0 if request.adapter is None else MAX_ADDED_TOKENS)  # its version will tell
        if not 0 <= min(request.tokens) <= max(request.tokens) < known:
            return unknown_tokens(limits.vocab)
        if not self._has_place(request.flow):
            return Overloaded("Model is overloaded")
        return None

    def _has_place(self, flow: Flow) -> bool:
        """Whether one more request of a flow may wait."""
        limit, taken = self.limits.max_waiting, len(self._loading) + self._scheduler.num_waiting
        if taken + 1 <= limit // 2:
            return True  # and nobody need be counted
        held = sum(sequence.request.flow == flow for sequence in self._loading.values())
        held += self._scheduler.num_waiting_of(flow)
        return has_place(held=held, taken=taken, wanted=1, limit=limit)

    def _enqueue(self, sequence: Sequence) -> None:
        self._queued[sequence.request.id] = sequence
        self._scheduler.enqueue(sequence)

    def _poll_adapters(self) -> None:
        """Renew wishes, let the store move, and enqueue or end the requests whose adapter arrived or failed."""
        self._store.poll()
        self.texts.advance()
        for ref, load_bytes in self._store.begun():
            self._charge_load(ref, load_bytes)
        for ref in list(self._wanted):
            state = self._store.want(ref)
            error = self._store.failure(ref)
            if error is not None:
                self._fail_waiting(ref, error)
            elif state in _LOADED:
                self._enqueue_ready(ref, is_loaded=True)
            elif self._store.lacks_room(ref):
                # It waits in the fair queue, where it ages; outside, a stream of others would starve it.
                self._enqueue_ready(ref, is_loaded=False)
            else:
                for sequence in self._unread.get(ref, ()):
                    sequence.refused_at = None  # its room is reserved: while it is read, nobody need make way for it

    def _charge_load(self, ref: AdapterRef, load_bytes: int) -> None:
        """A load is paid for by the flow that has waited longest for it, when it begins and whatever comes of it."""
        for sequence in [*self._queued.values(), *self._loading.values()]:
            if sequence.request.adapter == ref and sequence.placed is None:
                request = sequence.request
                self._scheduler.counter.charge(request.flow, weight=request.weight, load_bytes=load_bytes)
                return
        for flow, weight in self.texts.payers(ref):
            self._scheduler.counter.charge(flow, weight=weight, load_bytes=load_bytes)
            return

    def _enqueue_ready(self, ref: AdapterRef, *, is_loaded: bool) -> None:
        """Becoming ready counts as a request's arrival in the fair queue."""
        now_s = self._clock.monotonic_s()
        if is_loaded:
            for sequence in self._unread.pop(ref, ()):
                sequence.ready_s = now_s
        for sequence in [waiting for waiting in self._loading.values() if waiting.request.adapter == ref]:
            sequence.ready_s = now_s
            if not is_loaded:
                self._unread.setdefault(ref, []).append(sequence)
            del self._loading[sequence.request.id]
            self._enqueue(sequence)

    def _fail_waiting(self, ref: AdapterRef, error: ManyloraError) -> None:
        """End every request that waits for this adapter; those that run on a pinned version go on."""
        for sequence in [*self._loading.values(), *self._queued.values()]:
            if sequence.request.adapter == ref and sequence.placed is None:
                self._finish(sequence, FinishReason.ADAPTER_FAILURE, error)

    def _expire(self) -> None:
        """End requests that have waited too long; looked for a few times a second."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_expiry_s:
            return
        self._next_expiry_s = now_s + min(0.25, self.limits.max_queue_s)
        error = QueueTimeout(f"the request waited longer than {self.limits.max_queue_s:g} s")
        for sequence in [*self._loading.values(), *self._scheduler.waiting()]:
            if sequence.first_run_s is None and now_s - sequence.arrival_s > self.limits.max_queue_s:
                self._finish(sequence, FinishReason.QUEUE_TIMEOUT, error)

    def _note_admissions(self, plan: Plan) -> None:
        now_s = self._clock.monotonic_s()
        for request_id in plan.admitted:
            sequence = self._queued[request_id]
            if sequence.first_run_s is not None:
                continue  # it resumes after a preemption
            sequence.first_run_s = now_s
            self._totals["prompt_tokens"] += sequence.num_prompt
            self._totals["cached_tokens"] += sequence.cached_tokens or 0
            if sequence.placed is None or sequence.request.adapter is None:
                continue
            self._unwant(sequence.request.adapter)
            is_cold = AdapterState(sequence.tier_on_arrival) not in _LOADED
            sequence.adapter_use = AdapterUse(
                digest=sequence.placed.digest,
                tier=sequence.tier_on_arrival,
                load_ms=1e3 * (sequence.ready_s - sequence.arrival_s) if is_cold else 0.0,
            )

    def _run(self, plan: Plan) -> None:
        try:
            drawn = self._runner.run(plan, self._scheduler.running)
        except Exception as error:
            # A fault of the step: whose it is cannot be told, so everyone in it gets an answer and the rest go on.
            log.exception("engine.step_failed plan=%s", _loggable(plan))
            fault = EngineFault(f"Request failed during generation: {error}")
            for chunk in plan.chunks:
                self._finish(self._queued[chunk.request_id], FinishReason.ENGINE_FAILURE, fault)
            return
        for chunk in plan.chunks:
            self._commit(chunk, drawn.get(chunk.request_id, ()))

    def _commit(self, chunk: Chunk, drawn: tuple[Drawn, ...]) -> None:
        """Commit a chunk and the tokens drawn after it, one by one as if each had had a step of its own.

        All drawn tokens but the last are accepted draft tokens. Tokens drawn after one that ends the generation are
        neither returned nor counted.
        """
        if not drawn:  # the middle of a prompt
            self._scheduler.commit(chunk)
            return
        self._totals["draft_tokens"] += len(chunk.draft_tokens)
        for accepted, one in enumerate(drawn):
            if not one.is_finite:
                # Before anything that was computed with this row becomes findable in the prefix cache.
                self._end_poisoned(self._queued[chunk.request_id])
                return
            sequence = self._scheduler.commit(chunk, accepted)
            if sequence.request.stop.max_new_tokens == 0:  # the prompt alone was asked for
                self._finish(sequence, FinishReason.LENGTH)
                return
            self._totals["accepted_tokens"] += accepted > 0
            stop = self._append(sequence, one)
            if stop is not None:
                self._finish(sequence, stop.reason, stop_string=stop.stop_string)
                return
        if chunk.draft_tokens:
            self._scheduler.accept(chunk, len(drawn) - 1)

    def _end_poisoned(self, sequence: Sequence) -> None:
        """End the one request whose logits are not finite, and tell the store which version it ran with."""
        if sequence.placed is not None:
            self._store.suspect(sequence.placed)
        fault = EngineFault("Request failed during generation: the logits are not finite")
        self._finish(sequence, FinishReason.ENGINE_FAILURE, fault)

    def _append(self, sequence: Sequence, drawn: Drawn) -> Stop | None:
        """Make a drawn token the sequence's next, tell it, and say whether it is the last."""
        sequence.tokens.append(drawn.token_id)
        if sequence.penalties is not None:
            sequence.penalties.add(drawn.token_id)
        self._totals["completion_tokens"] += 1
        is_first = sequence.num_generated == 1
        self._tokens.append(
            TokenEvent(
                request_id=sequence.request.id,
                token_id=drawn.token_id,
                logprob=drawn.logprob,
                alternatives=drawn.alternatives,
                adapter=sequence.adapter_use if is_first else None,
                queue_ms=sequence.queue_ms if is_first else None,
                cached_tokens=sequence.cached_tokens if is_first else None,
            )
        )
        return sequence.stopper.push(drawn.token_id, sequence.num_generated)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: ManyloraError | None = None,
        *,
        stop_string: str | None = None,
    ) -> None:
        """Free all that a request holds and record its one end."""
        request = sequence.request
        has_run = sequence.first_run_s is not None
        if self._loading.pop(request.id, None) is None:
            del self._queued[request.id]
            self._scheduler.remove(sequence)
        if request.adapter is not None and not has_run:
            self._unwant(request.adapter)
        self._pins.unpin(sequence)
        now_s = self._clock.monotonic_s()
        self._finished.append(
            Finished(
                request_id=request.id,
                reason=reason,
                counts=sequence.counts,
                stop_string=stop_string,
                failure=None if error is None else Failure.of(error),
                queue_ms=sequence.queue_ms,
                run_ms=None if sequence.first_run_s is None else 1e3 * (now_s - sequence.first_run_s),
            )
        )

    def _unwant(self, ref: AdapterRef) -> None:
        self._wanted[ref] -= 1
        if self._wanted[ref] <= 0:
            del self._wanted[ref]
            self._unread.pop(ref, None)
            self._store.unwant(ref)

    def _take_events(self) -> StepEvents:
        events = StepEvents(tuple(self._tokens), tuple(self._finished))
        self._tokens, self._finished = [], []
        return events


def _loggable(plan: Plan) -> dict[str, object]:
    """Return the plan as a dictionary, with the number of draft tokens for these: tokens are a caller's text."""
    chunks = [{**dataclasses.asdict(chunk), "draft_tokens": len(chunk.draft_tokens)} for chunk in plan.chunks]
    return {**dataclasses.asdict(plan), "chunks": chunks}


def _ended_unrun(request: Request, reason: FinishReason, error: ManyloraError) -> Finished:
    counts = Counts(prompt_tokens=len(request.tokens), cached_tokens=0, completion_tokens=0)
    return Finished(request_id=request.id, reason=reason, counts=counts, failure=Failure.of(error))
