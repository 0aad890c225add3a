"""The plan of the next step: the positions of the sequences that it computes. Data in, data out, no tensors."""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.engine.request import Priority
from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.fairness import VirtualTokenCounter
from manylora.engine.scheduling.plan import Chunk, Plan
from manylora.engine.scheduling.queues import FairQueue
from manylora.engine.scheduling.reservations import BlockReservations
from manylora.engine.scheduling.retention import Retention
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.scheduling.step import Step, StepLimits
from manylora.engine.scheduling.work import StepTime, StepWork
from manylora.ids import Flow, RequestId

PATIENCE_STEPS = 256
"""After so many steps without room for its adapter a sequence is next: no other adapter is pinned before its own."""

MAX_LOOKED_PAST = 64
"""Adapters without room tried in one step; bounds the host work of a step with many such requests."""

BATCH_PATIENCE_STEPS = 32
"""After so many steps without a row a running batch sequence gets rows beside interactive prompts."""

BESIDE_DIVISOR = 4
"""Beside interactive rows, batch sequences have this part of the rows that they may have alone."""

PRUNE_STEPS = 1024
"""Steps between two removals of the counters of idle flows."""


class AdapterGate(Protocol):
    """The scheduler's access to adapters on the device."""

    def pin(self, sequence: Sequence) -> bool:
        """Pin the sequence's adapter and set its `root`; return False if the weights are not on the device yet.

        Always True for a sequence that is pinned already (a preempted one) and for one of the base model.
        """

    def unpin(self, sequence: Sequence) -> None:
        """Undo `pin` for a sequence that has not run."""

    def reclaim(self, blocks: int) -> bool:
        """Take back this many blocks lent to adapters; return False if pinned adapters hold too many of them."""


class Scheduler:
    """Queues, the running set and the block pool; `plan` decides one step.

    Order within a step: sequences that decode (one row each), then prompts under way, oldest admission first, then
    admissions from the least served flow. Admission stops at the first sequence whose blocks do not fit, so that small
    requests cannot starve a large one. It skips a sequence whose adapter has no place on the device; that sequence
    ages. Rows and blocks left over hold draft tokens: these never delay a row, preempt a sequence or outlive the step.
    Rows of prompts and draft tokens also end where the step's work does (docs/decisions/work-of-a-step.md), and rows of
    prompts where interactive sequences that decode would wait too long (docs/decisions/steps-by-time.md).

    Interactive sequences come before batch sequences in all of this, and take their places and blocks. A step with an
    interactive prompt has no batch row. So that batch sequences never starve, running ones get rows after
    `BATCH_PATIENCE_STEPS` steps without any, and one of them is admitted first after `PATIENCE_STEPS`; it keeps its
    place (docs/decisions/batches.md).
    """

    def __init__(self, pool: BlockPool, limits: StepLimits, gate: AdapterGate) -> None:
        self.pool = pool
        self.limits = limits
        self.retention = Retention(block_size=pool.block_size, max_rows=limits.max_rows, window=limits.sliding_window)
        self._gate = gate
        self._blocks = BlockReservations(pool, self.retention, gate.reclaim)
        self._queues = {priority: FairQueue() for priority in Priority}
        self.running: dict[RequestId, Sequence] = {}  # in order of admission
        self._steps = 0
        self._has_refused = False  # some queued sequence may have been skipped; avoids a scan in most steps
        self._held_back = 0  # steps in succession without a row for the batch sequences that were there

    # ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def num_waiting_of(self, flow: Flow) -> int:
        return sum(queue.num_of(flow) for queue in self._queues.values())

    def waiting(self) -> Iterator[Sequence]:
        """Yield every queued sequence: priority by priority, flow by flow, each flow in order of arrival."""
        for queue in self._queues.values():
            yield from queue

    def counter(self, priority: Priority = Priority.INTERACTIVE) -> VirtualTokenCounter:
        """Return the counter of the service that the flows of a priority have received."""
        return self._queues[priority].counter

    def enqueue(self, sequence: Sequence) -> None:
        """Add a sequence that is ready to run to its flow's queue."""
        self._queues[sequence.request.priority].append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if self.running.pop(sequence.request.id, None) is None:
            self._queues[sequence.request.priority].discard(sequence)
        self._blocks.drop(sequence)

    # ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self, time: StepTime | None = None) -> Plan:
        """Decide the next step and reserve its blocks. Deterministic: equal histories and estimates give equal plans.

        Args:  time  the estimate of a step's time; None: rows and work alone bound the step
        """
        self._steps += 1
        if self._steps % PRUNE_STEPS == 0:
            for priority, queue in self._queues.items():
                queue.prune(sequence.request.flow for sequence in self._running(priority))
        step = Step(StepWork(self.limits.row_work, self.limits.max_rows), self.limits.max_scored_rows)
        self._make_room(step)
        kept = self._rows_kept_for_batch(step)
        kept_scored = min(kept, step.scored_rows // 2)
        step.scored_rows -= kept_scored
        rows = kept + self._plan_class(step, Priority.INTERACTIVE, self.limits.max_rows - kept, time)
        step.scored_rows += kept_scored
        if self._queues[Priority.BATCH] or any(self._running(Priority.BATCH)):
            rows -= self._plan_batch(step, rows, is_due=kept > 0)
        else:
            self._held_back = 0
        self._add_draft_tokens(step, rows)
        return Plan(self._steps, tuple(step.chunks), tuple(step.admitted), tuple(step.preempted))

    def _plan_class(self, step: Step, priority: Priority, rows: int, time: StepTime | None = None) -> int:
        """Plan the rows of one priority: sequences that decode, prompts under way, admissions. Return the rows left.

        Args:  time  the estimate that bounds the time of prompts beside these sequences that decode, and from then on
        """
        prompts: list[Sequence] = []
        before = len(step.chunks)
        for sequence in self._running(priority):
            length = len(sequence.tokens)
            if length - sequence.computed > 1 or sequence.request.id in step.admitted:
                prompts.append(sequence)
            elif length > sequence.num_prompt and rows > 0:
                rows = self._add_decoding(step, sequence, rows)
            else:  # the last row of a prompt
                rows = self._add_chunk(step, sequence, rows)
        if time is not None and (decoding := len(step.chunks) - before):
            step.work.bound_time(time, (self.limits.max_gap_steps - 1) * time.of_decoding(decoding))
        for sequence in prompts:
            rows = self._add_chunk(step, sequence, rows)
        starving = self._starving()
        while rows > 0 and step.work.has_room and not step.is_full:
            newcomer = self._admit_next(step, priority, starving)
            if newcomer is None:
                break
            rows = self._add_chunk(step, newcomer, rows)
        return rows

    def _plan_batch(self, step: Step, rows: int, *, is_due: bool) -> int:
        """Plan the rows of batch sequences beside those of interactive ones; return their number."""
        most = self.limits.batch_rows
        if step.chunks:
            most = max(1, most // BESIDE_DIVISOR)
        rows, before = min(rows, most), len(step.chunks)
        if not is_due and any(self._is_prompt(chunk) for chunk in step.chunks):
            rows = 0
        if is_due:
            step.work.renew_least()
        left = self._plan_class(step, Priority.BATCH, rows)
        self._held_back = 0 if len(step.chunks) > before else self._held_back + 1
        return rows - left

    def _is_prompt(self, chunk: Chunk) -> bool:
        """Return whether a chunk is a part of a prompt, or of one computed again."""
        return chunk.num_rows > 1 or self.running[chunk.request_id].num_generated == 0

    def _rows_kept_for_batch(self, step: Step) -> int:
        """Return the rows that the step keeps for batch sequences whose turn has come, and admit the first one."""
        if self._held_back < BATCH_PATIENCE_STEPS:
            return 0
        if not any(self._running(Priority.BATCH)):
            if self._held_back < PATIENCE_STEPS:
                return 0
            newcomer = self._admit_next(step, Priority.BATCH, self._starving())
            if newcomer is None:
                return 0
            newcomer.keeps_place = True
        decoding = sum(1 for _ in self._running(Priority.INTERACTIVE))
        return max(0, min(self.limits.batch_rows // BESIDE_DIVISOR or 1, self.limits.max_rows - decoding))

    def commit(self, chunk: Chunk, accepted: int = 0) -> Sequence:
        """Record that a chunk was computed: its full blocks enter the prefix cache, those behind the window are freed.

        Args:  accepted  draft tokens of the chunk accepted so far; they are in the sequence's tokens already
        An accepted draft token is charged here. A rejected one is not charged: its row would have stayed empty.
        """
        sequence = self.running[chunk.request_id]
        if accepted > 0:
            request = sequence.request
            self.counter(request.priority).charge(request.flow, weight=request.weight, completion_tokens=1)
        sequence.computed = chunk.stop + accepted
        if sequence.reached < sequence.num_prompt:
            sequence.reached = max(sequence.reached, min(sequence.computed, sequence.num_prompt))
        if sequence.prompt_lookup is not None and not chunk.is_sampled:
            sequence.prompt_lookup.index(sequence.tokens, chunk.num_rows)
        self._blocks.publish(sequence)
        return sequence

    def accept(self, chunk: Chunk, accepted: int) -> None:
        """Accept the first `accepted` draft tokens of a chunk and reject the rest: free the blocks of rejected ones."""
        sequence = self.running[chunk.request_id]
        self._blocks.trim(sequence)
        sequence.note_draft(len(chunk.draft_tokens), accepted)

    # ── steps of the plan ────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self, step: Step) -> None:
        """Give every running sequence the blocks that its next rows need; preempt others if blocks run out."""
        short = [one for one in self.running.values() if self._blocks.lacks(one)]
        for sequence in short:
            while sequence.request.id in self.running and not self._blocks.grow(sequence):
                # The oldest interactive sequence is preempted last, and one alone always fits (`Engine.submit`).
                newest = next(reversed(self.running.values()))
                self._preempt(step, self._newest_batch(keeps_place=True) or newest)

    def _running(self, priority: Priority) -> Iterator[Sequence]:
        """Yield the running sequences of a priority, in order of admission."""
        return (sequence for sequence in self.running.values() if sequence.request.priority is priority)

    def _newest_batch(self, *, keeps_place: bool = False) -> Sequence | None:
        """Return the batch sequence to preempt first; None: there is none.

        Args:  keeps_place  whether it may be the one that was admitted because batch sequences had starved
        """
        for sequence in reversed(self.running.values()):
            if sequence.request.priority is Priority.BATCH and (keeps_place or not sequence.keeps_place):
                return sequence
        return None

    def _preempt(self, step: Step, sequence: Sequence) -> None:
        """Free a sequence's blocks and put it at the head of its flow's queue; it keeps its adapter pinned."""
        del self.running[sequence.request.id]
        self._blocks.drop(sequence)
        self._queues[sequence.request.priority].put_first(sequence)
        step.preempted.append(sequence.request.id)

    def _add_decoding(self, step: Step, sequence: Sequence, rows: int) -> int:
        """Plan the row behind the last token drawn, as `_add_chunk` would; return the rows left."""
        request, position = sequence.request, sequence.computed
        step.work.spend_row(position)
        step.chunks.append(Chunk(request.id, position, position + 1, is_sampled=True))
        self._queues[request.priority].counter.charge(request.flow, weight=request.weight, completion_tokens=1)
        return rows - 1

    def _add_chunk(self, step: Step, sequence: Sequence, rows: int) -> int:
        """Plan as much of the sequence's remaining work as fits in `rows` and in the step; return the rows left."""
        start, end = sequence.computed, len(sequence.tokens)
        count = min(end - start, rows)
        if sequence.num_unscored > 0:
            count, _ = sequence.scored_part(count, step.scored_rows)
        if end - start > 1:
            count = step.work.fit(start, count)
        elif count:
            step.work.spend(start, end)
        if count == 0:
            return rows
        stop = start + count
        is_sampled = stop == end and sequence.pooled is None
        request = sequence.request
        _, scored = sequence.scored_part(count, step.scored_rows)
        step.scored_rows -= scored[1] - scored[0]
        step.chunks.append(Chunk(request.id, start, stop, is_sampled, scored=scored))
        new_prompt = 0
        if sequence.charged < sequence.num_prompt:
            new_prompt = max(0, min(stop, sequence.num_prompt) - max(start, sequence.charged))
            sequence.charged = max(sequence.charged, min(stop, sequence.num_prompt))
        self.counter(request.priority).charge(
            request.flow, weight=request.weight, prompt_tokens=new_prompt, completion_tokens=int(is_sampled)
        )
        return rows - count

    def _add_draft_tokens(self, step: Step, rows: int) -> None:
        """Use rows left over for draft tokens of the sequences that draw a token, if those are few."""
        chunks = step.chunks
        if self.limits.max_draft_tokens == 0 or sum(chunk.is_sampled for chunk in chunks) > self.limits.draft_width:
            return
        for index, chunk in enumerate(chunks):
            if rows <= 0:
                break
            if chunk.is_sampled:
                sequence = self.running[chunk.request_id]
                if draft := sequence.draft_tokens(self._room_for_draft(step, sequence, rows)):
                    step.work.spend(chunk.stop, chunk.stop + len(draft))
                    self._blocks.extend(sequence, len(draft))
                    chunks[index] = dataclasses.replace(chunk, draft_tokens=draft)
                    rows -= len(draft)

    def _room_for_draft(self, step: Step, sequence: Sequence, rows: int) -> int:
        """Draft tokens of one sequence for which there are rows, blocks and work."""
        most = min(self.limits.max_draft_tokens, rows, self._blocks.room(sequence))
        return step.work.rows(len(sequence.tokens), most)

    def _admit_next(self, step: Step, priority: Priority, starving: Sequence | None) -> Sequence | None:
        """Start the next sequence of a priority in fair order, or return None if none can start now."""
        is_batch = priority is Priority.BATCH
        if is_batch and step.preempted:
            return None
        if len(self.running) >= self.limits.max_running and (is_batch or self._newest_batch() is None):
            step.is_full = is_batch
            return None
        refused: set[AdapterRef] = set()
        for sequence in self._queues[priority].fair_order():
            adapter = sequence.request.adapter
            if adapter is not None and sequence.placed is None:
                is_held_back = starving is not None and adapter != starving.request.adapter
                if is_held_back or adapter in refused or (is_batch and step.refuses):
                    continue
                if not self._gate.pin(sequence):
                    refused.add(adapter)
                    self._note_refusal(step, sequence)
                    if len(refused) >= MAX_LOOKED_PAST:
                        return None
                    continue
            elif sequence.root is None:
                self._gate.pin(sequence)
            if not self._find_room(step, sequence):
                if sequence.cached_tokens is None:
                    self._gate.unpin(sequence)
                step.is_full = True
                return None
            self._start(step, sequence)
            return sequence
        return None

    def _note_refusal(self, step: Step, sequence: Sequence) -> None:
        """Note that a sequence's adapter has no room on the device, so that the sequence ages."""
        if sequence.refused_at is None:
            sequence.refused_at = self._steps
        self._has_refused = True
        step.refuses |= sequence.request.priority is Priority.INTERACTIVE

    def _find_room(self, step: Step, sequence: Sequence) -> bool:
        """Reserve a place and blocks for a sequence. An interactive one takes those of batch sequences if need be."""
        is_interactive = sequence.request.priority is Priority.INTERACTIVE
        while len(self.running) >= self.limits.max_running or not self._take_blocks(sequence):
            victim = self._newest_batch() if is_interactive else None
            if victim is None:
                return False
            self._preempt(step, victim)
        return True

    def _starving(self) -> Sequence | None:
        """Return the queued sequence whose adapter has lacked room longest, if for `PATIENCE_STEPS` or more.

        It may be a batch sequence if no batch sequence has had a row for so long.
        """
        if not self._has_refused:
            return None
        refused = [sequence for sequence in self.waiting() if sequence.refused_at is not None]
        self._has_refused = bool(refused)
        if self._held_back < PATIENCE_STEPS:
            refused = [sequence for sequence in refused if sequence.request.priority is Priority.INTERACTIVE]
        first = min(refused, key=lambda sequence: sequence.refused_at or 0, default=None)
        return first if first is not None and self._steps - (first.refused_at or 0) >= PATIENCE_STEPS else None

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Reserve blocks for the sequence's tokens, reusing cached ones; return False if too few are free."""
        if not self._blocks.begin(sequence):
            return False
        sequence.charged = max(sequence.charged, min(sequence.computed, sequence.num_prompt))
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.computed, sequence.num_prompt)
        return True

    def _start(self, step: Step, sequence: Sequence) -> None:
        self._queues[sequence.request.priority].take(sequence)
        sequence.refused_at = None
        self.running[sequence.request.id] = sequence
        step.admitted.append(sequence.request.id)
