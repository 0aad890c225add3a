"""The engine's loop body, one step: poll conditions → expire → plan → execute → commit."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import AdapterAction, AdapterInfo
from manylora.clock import Clock
from manylora.engine.adapter_port import AdapterState, AdapterStore
from manylora.engine.commits import Commits, End
from manylora.engine.events import (
    AdapterUse,
    EngineStats,
    Finished,
    FinishReason,
    StepEvents,
)
from manylora.engine.execution.executor import Executor, RankNumbers, one_rank
from manylora.engine.grammars.compiler import GrammarCompiler, grammar_key
from manylora.engine.limits import EngineLimits, rejected
from manylora.engine.logits_rules import logits_rules
from manylora.engine.request import Priority, Request
from manylora.engine.scheduling.pins import AdapterPins
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.scheduler import Scheduler
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.scheduling.step_times import StepTimes
from manylora.engine.stopping import StopChecker, TextStream
from manylora.engine.texts import TextQuestions
from manylora.engine.waiting import LOADED, AdapterReady, Condition, GrammarReady, WaitingRoom, adapter_conditions
from manylora.errors import (
    AdapterError,
    EngineFault,
    ManyloraError,
    Overloaded,
    QueueTimeout,
    RankLost,
    Unavailable,
)
from manylora.failure import Failure
from manylora.ids import Flow, RequestId
from manylora.kernels.captures.limits import StepCounts
from manylora.kernels.interface import Profile
from manylora.models.text.adapter_text import AddedToken
from manylora.sharing import has_place

log = logging.getLogger(__name__)


class Engine:
    """A synchronous engine without a thread, clock, file or socket of its own; `step` does all the work.

    Every submitted request ends in exactly one `Finished`, returned by a later `step` or by `shutdown`.
    Thread: one.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        executor: Executor,
        store: AdapterStore,
        pins: AdapterPins,
        grammars: GrammarCompiler,
        clock: Clock,
        limits: EngineLimits,
        end_of_sequence: Collection[int],
        open_text: Callable[[tuple[AddedToken, ...], bool], TextStream],
        ranks: Callable[[], RankNumbers] = one_rank,
        computed: StepCounts | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._store = store
        self._pins = pins
        self._grammars = grammars
        self._clock = clock
        self.limits = limits
        self._end_of_sequence = frozenset(end_of_sequence)
        self._open_text = open_text
        self._ranks = ranks
        self._computed = computed or StepCounts()
        self.texts = TextQuestions(store, clock, max_wait_s=limits.max_queue_s)
        self._waiting = WaitingRoom(self._enqueue, self._fail_waiting, clock)
        self._queued: dict[RequestId, Sequence] = {}  # in the scheduler: waiting or running
        self._is_stuck = False  # the last step had nothing to compute
        self._finished: list[Finished] = []
        self._next_expiry_s = 0.0
        self._totals: Counter[str] = Counter()
        self._commits = Commits(scheduler, store, self._totals)
        self._times = StepTimes(scheduler.limits.row_work)

    # ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_work(self) -> bool:
        """Return whether a step would do anything: requests are under way, or events are not yet returned."""
        return bool(self._waiting or self._queued or self._finished or self.texts.has_work)

    @property
    def is_waiting_for_adapters(self) -> bool:
        """Return whether every request under way waits, so that the caller may sleep a little between steps."""
        return self._is_stuck and bool(self._waiting or self._queued or self.texts)

    def submit(self, request: Request) -> None:
        """Take a request. The next step ends one that cannot be served, with the error that says why."""
        if (error := self._refusal(request)) is not None:
            self._finished.append(rejected(request, error))
            return
        stop = request.stop
        stopper = StopChecker(stop, self._end_of_sequence, partial(self._open_text, stop.added_tokens))
        sequence = Sequence(
            request,
            stopper,
            logits_rules(request, stopper.ends),
            self._clock.monotonic_s() - request.waited_ms / 1e3,
        )
        self._is_stuck = False
        self._waiting.add(sequence, self._conditions(sequence))

    def abort(self, request_id: RequestId, reason: FinishReason) -> None:
        """End a request now; its rows, blocks and pins are free before the next step.

        An unknown id changes nothing: the request may have ended a moment ago.
        """
        sequence = self._waiting.get(request_id) or self._queued.get(request_id)
        if sequence is not None:
            self._finish(sequence, End(reason))

    def step(self) -> StepEvents:
        """Advance every request by one step and return the events that it committed."""
        self._poll_conditions()
        self._expire()
        plan = self._scheduler.plan(self._times.estimate())
        for sequence, error in self._pins.take_faults():
            self._finish(sequence, End(FinishReason.REJECTED, error))
        self._totals["steps"] += 1
        self._totals["preemptions"] += len(plan.preempted)
        self._is_stuck = not plan.chunks
        if plan.chunks:
            self._note_admissions(plan)
            self._execute(plan)
        else:
            self._executor.release()
        return self._take_events()

    def tend(self) -> bool:
        """Poll the adapter store while no request is under way; return whether to call again soon.

        So the store loads adapters that an operator asked for, and evicts idle ones, without a step. Old grammars go.
        """
        self._executor.release()
        self._grammars.tend()
        self._store.poll()
        return self._store.is_busy

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        """Begin an operator's action on one adapter. Raises: a `ManyloraError` if it is not possible."""
        return self._store.manage(action, ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        """Return the state of one adapter for an operator. Raises: AdapterNotFound."""
        return self._store.info(ref)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """Return the state of every known adapter for an operator."""
        return self._store.infos()

    def drop_grammars(self, flows: Iterable[Flow]) -> None:
        """Drop the compiled grammars of closed tenants; requests under way keep theirs to their end."""
        for flow in flows:
            self._grammars.close_flow(flow)

    def shutdown(self) -> StepEvents:
        """End every request under way, then close the engine."""
        error = Unavailable("the server is shutting down; repeat the request")
        for sequence in [*self._waiting, *self._queued.values()]:
            self._finish(sequence, End(FinishReason.SHUTDOWN, error))
        self.close()
        return self._take_events()

    def close(self) -> None:
        """Stop the loaders and the trials of grammars, and free the executor; the engine is not used afterwards."""
        with contextlib.ExitStack() as closing:  # each is closed, whichever of them raises
            closing.callback(self._grammars.close)
            closing.callback(self._executor.close)
            closing.callback(self._store.close)

    def stats(self) -> EngineStats:
        """Return the engine's gauges and totals."""
        pool, totals, ranks = self._scheduler.pool, self._totals, self._ranks()
        return EngineStats(
            waiting=self._scheduler.num_waiting,
            loading=len(self._waiting) + len(self.texts),
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
            dead_ends=totals["dead_ends"],
            adapters=self._store.stats(),
            grammars=self._grammars.stats(),
            ranks_up=ranks.up,
            collective_s=ranks.collective_s,
            replayed_steps=self._computed.replayed,
            eager_steps=self._computed.eager,
        )

    def start_profile(self) -> Profile | None:
        """Time the kernels of every step from now on, by kind; None if the back end cannot."""
        return self._executor.start_profile()

    def check(self) -> None:
        """Raise AssertionError if blocks are lost, or if an idle engine holds blocks, sequences or what they use."""
        self._scheduler.pool.check()
        if not self.has_work:
            pool = self._scheduler.pool
            assert pool.num_free + pool.num_lent == pool.num_blocks, "an idle engine holds blocks"
            assert not self._waiting.has_conditions, "an idle engine waits for conditions"
            assert not self._scheduler.running, "an idle engine runs sequences"
            assert not self._grammars.is_used, "an idle engine uses grammars"

    # ── steps of a step ──────────────────────────────────────────────────────────────────────────────────────────

    def _refusal(self, request: Request) -> ManyloraError | None:
        """Return the reason for which a request cannot be served at all, or now; None if it can."""
        longest = self._scheduler.retention.longest(self._scheduler.pool.num_blocks, at_most=self.limits.max_model_len)
        refusal = self.limits.refusal(request, longest)
        if refusal is None and not self._has_place(request.flow):
            return Overloaded("Model is overloaded")
        return refusal

    def _has_place(self, flow: Flow) -> bool:
        """Return whether one more request of a flow may wait."""
        limit, taken = self.limits.max_waiting, len(self._waiting) + self._scheduler.num_waiting
        if taken + 1 <= limit // 2:
            return True  # each flow may hold half, so the flow's own need not be counted
        held = self._waiting.num_waiting_of(flow) + self._scheduler.num_waiting_of(flow)
        return has_place(held=held, taken=taken, wanted=1, limit=limit)

    def _enqueue(self, sequence: Sequence) -> None:
        if (key := grammar_key(sequence.request)) is not None:
            added = sequence.request.stop.added_tokens
            sequence.matcher = self._grammars.matcher(key, sequence.request.flow, sequence.stopper.ends, added)
        self._queued[sequence.request.id] = sequence
        self._scheduler.enqueue(sequence)

    def _conditions(self, sequence: Sequence) -> Iterator[Condition]:
        """Yield the conditions that a new sequence waits for, and begin them."""
        request = sequence.request
        if request.adapter is not None:
            states = [self._store.want(ref, request.flow) for ref in request.adapter.loaded]
            sequence.tier_on_arrival = request.found_in or min(states, key=list(AdapterState).index).value
            yield from adapter_conditions(request.adapter.loaded, self._store)
        if (key := grammar_key(request)) is not None:
            yield GrammarReady(key, request.flow, self._grammars)

    def _poll_conditions(self) -> None:
        """Let the store move, then enqueue or end the requests whose conditions are ready or have failed."""
        self._store.poll()
        self._grammars.tend()
        self.texts.advance()
        for ref, load_bytes in self._store.begun():
            self._charge_load(ref, load_bytes)
        self._waiting.poll()

    def _charge_load(self, ref: AdapterRef, load_bytes: int) -> None:
        """Charge a load that has begun to the flow that has waited longest for it, however the load ends."""
        first = self._waiting.first(AdapterReady(ref, self._store))
        if first is not None:
            request = first.request
            counter = self._scheduler.counter(request.priority)
            counter.charge(request.flow, weight=request.weight, load_bytes=load_bytes)
            return
        for flow, weight in self.texts.payers(ref):
            self._scheduler.counter().charge(flow, weight=weight, load_bytes=load_bytes)
            return

    def _fail_waiting(self, sequence: Sequence, error: ManyloraError) -> None:
        is_adapters = isinstance(error, AdapterError) or sequence.request.grammar is None
        self._finish(sequence, End(FinishReason.ADAPTER_FAILURE if is_adapters else FinishReason.REJECTED, error))

    def _expire(self) -> None:
        """End interactive requests that have waited too long; checks a few times a second."""
        now_s = self._clock.monotonic_s()
        if now_s < self._next_expiry_s or not (self._waiting or self._scheduler.num_waiting):
            return
        self._next_expiry_s = now_s + min(0.25, self.limits.max_queue_s)
        error = QueueTimeout(f"the request waited longer than {self.limits.max_queue_s:g} s")
        for sequence in [*self._waiting, *self._scheduler.waiting()]:
            if sequence.request.priority is Priority.BATCH or sequence.first_run_s is not None:
                continue
            if now_s - sequence.arrival_s > self.limits.max_queue_s:
                self._finish(sequence, End(FinishReason.QUEUE_TIMEOUT, error))

    def _note_admissions(self, plan: Plan) -> None:
        """Record the first step of each sequence that begins with this plan."""
        now_s = self._clock.monotonic_s()
        for request_id in plan.admitted:
            sequence = self._queued[request_id]
            if sequence.first_run_s is not None:
                continue  # it resumes after a preemption
            sequence.first_run_s = now_s
            self._totals["prompt_tokens"] += sequence.num_prompt
            self._totals["cached_tokens"] += sequence.cached_tokens or 0
            self._waiting.leave(sequence)
            if sequence.placed is None:
                continue
            is_cold = AdapterState(sequence.tier_on_arrival) not in LOADED
            sequence.adapter_use = AdapterUse(
                digest=sequence.placed.digest,
                tier=sequence.tier_on_arrival,
                load_ms=1e3 * (sequence.ready_s - sequence.arrival_s) if is_cold else 0.0,
            )

    def _execute(self, plan: Plan) -> None:
        begun_s = self._clock.monotonic_s()
        try:
            results = self._executor.execute(plan, self._scheduler.running)
        except RankLost:
            raise  # no later step can succeed: this process ends, and with it every request
        except Exception as error:
            # The request at fault is not known: every request of the plan ends with an answer, the others go on.
            log.exception("engine.step_failed plan=%s", plan.summary())
            fault = EngineFault(f"Request failed during generation: {error}")
            for chunk in plan.chunks:
                self._finish(self._queued[chunk.request_id], End(FinishReason.ENGINE_FAILURE, fault))
            return
        for chunk in plan.chunks:
            end = self._commits.commit(chunk, results.get(chunk.request_id, ()))
            if end is not None:
                self._finish(self._queued[chunk.request_id], end)
        self._times.note(plan, self._clock.monotonic_s() - begun_s)

    # ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, sequence: Sequence, end: End) -> None:
        """Free everything that a request holds and record its end."""
        request = sequence.request
        if not self._waiting.leave(sequence):
            del self._queued[request.id]
            self._scheduler.remove(sequence)
        self._pins.unpin(sequence)
        if sequence.matcher is not None and (key := grammar_key(request)) is not None:
            self._grammars.release(key, request.flow)
        now_s = self._clock.monotonic_s()
        self._finished.append(
            Finished(
                request_id=request.id,
                reason=end.reason,
                counts=sequence.counts,
                stop_string=end.stop_string,
                failure=None if end.error is None else Failure.of(end.error),
                queue_ms=sequence.queue_ms,
                run_ms=None if sequence.first_run_s is None else 1e3 * (now_s - sequence.first_run_s),
                pooled=end.pooled,
                adapter=None if end.pooled is None else sequence.adapter_use,
                prompt=None if end.error or sequence.num_generated else sequence.scored_prompt,
            )
        )

    def _take_events(self) -> StepEvents:
        events = StepEvents(self._commits.take_tokens(), tuple(self._finished))
        self._totals["completion_tokens"] += len(events.tokens)
        self._finished = []
        return events
