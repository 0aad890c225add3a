"""The plan of the next step: the positions of the sequences that it computes. Data in, data out, no tensors."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from manylora.adapter_ref import AdapterRef
from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.fairness import VirtualTokenCounter
from manylora.engine.scheduling.retention import Retention
from manylora.engine.scheduling.sequence import Sequence
from manylora.ids import Flow, RequestId

PATIENCE_STEPS = 256
"""After so many steps without room for its adapter a sequence is next: no other adapter is pinned before its own."""

MAX_LOOKED_PAST = 64
"""Adapters without room tried in one step; bounds the host work of a step with many such requests."""

PRUNE_STEPS = 1024
"""Steps between two removals of the counters of idle flows."""


@dataclass(slots=True)  # one for every row that decodes: a frozen one takes three times as long to make
class Chunk:
    """Positions `[start, stop)` of one sequence; `is_sampled` if a token is drawn after the last of them.

    draft_tokens  computed at the positions from `stop` on as if they had been drawn already; empty unless `is_sampled`.
                  A token is drawn after each of them, in order, until a drawn token differs from the draft. So the
                  tokens are those of as many steps of one token.
    """

    request_id: RequestId
    start: int
    stop: int
    is_sampled: bool
    draft_tokens: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the step that this chunk takes, draft tokens included."""
        return self.stop - self.start + len(self.draft_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. Comparable with `==`, printable, recordable as JSON (`dataclasses.asdict`).

    number     steps planned so far, this one included
    chunks     the positions to compute, in running order
    admitted   sequences that begin or resume with this step
    preempted  sequences that lost their blocks to make room
    """

    number: int
    chunks: tuple[Chunk, ...]
    admitted: tuple[RequestId, ...]
    preempted: tuple[RequestId, ...]

    @property
    def num_rows(self) -> int:
        return sum(chunk.num_rows for chunk in self.chunks)

    def summary(self) -> dict[str, object]:
        """Return the plan for a log line: the number of draft tokens in place of these, which are a caller's text."""
        chunks = [{**dataclasses.asdict(chunk), "draft_tokens": len(chunk.draft_tokens)} for chunk in self.chunks]
        return {**dataclasses.asdict(self), "chunks": chunks}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The bounds of one step.

    max_rows          rows of one step
    max_running       sequences under way at once
    max_draft_tokens  draft tokens of one sequence in one step; 0: no speculation
    draft_width       sequences that draw a token in one step; if more do, the step has no draft tokens
    sliding_window    positions that a row sees, itself included, in the layer that sees most; None: all before it
    """

    max_rows: int
    max_running: int
    max_draft_tokens: int = 0
    draft_width: int = 0
    sliding_window: int | None = None


class Scheduler:
    """Queues, the running set and the block pool; `plan` decides one step.

    Order within a step: sequences that decode (one row each), then prompts under way, oldest admission first, then
    admissions from the least served flow. Admission stops at the first sequence whose blocks do not fit, so that small
    requests cannot starve a large one. It skips a sequence whose adapter has no place on the device; that sequence
    ages. Rows and blocks left over hold draft tokens: these never delay a row, preempt a sequence or outlive the step.
    """

    def __init__(self, pool: BlockPool, limits: StepLimits, gate: AdapterGate) -> None:
        self.pool = pool
        self.limits = limits
        self.retention = Retention(block_size=pool.block_size, max_rows=limits.max_rows, window=limits.sliding_window)
        self._gate = gate
        self.counter = VirtualTokenCounter()
        self._queues: dict[Flow, deque[Sequence]] = {}
        self.running: dict[RequestId, Sequence] = {}  # in order of admission
        self._steps = 0
        self._has_refused = False  # some queued sequence may have been skipped; avoids a scan in most steps

    # ── the queue ────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_waiting(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def num_waiting_of(self, flow: Flow) -> int:
        return len(self._queues.get(flow, ()))

    def waiting(self) -> Iterator[Sequence]:
        """Yield every queued sequence, flow by flow, each flow in order of arrival."""
        for queue in self._queues.values():
            yield from queue

    def enqueue(self, sequence: Sequence) -> None:
        """Add a sequence that is ready to run to its flow's queue."""
        self._queue_of(sequence.request.flow).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if self.running.pop(sequence.request.id, None) is None:
            queue = self._queues.get(sequence.request.flow)
            if queue is not None and sequence in queue:
                queue.remove(sequence)
                self._drop_if_empty(sequence.request.flow)
        self.pool.release(sequence.drop_blocks())

    # ── the plan ─────────────────────────────────────────────────────────────────────────────────────────────────

    def plan(self) -> Plan:
        """Decide the next step and reserve its blocks. Deterministic: equal histories give equal plans."""
        self._steps += 1
        if self._steps % PRUNE_STEPS == 0:
            self.counter.prune({*self._queues, *(sequence.request.flow for sequence in self.running.values())})
        preempted = self._make_room()
        rows = self.limits.max_rows
        chunks: list[Chunk] = []
        prompts: list[Sequence] = []
        for sequence in self.running.values():
            if len(sequence.tokens) - sequence.computed > 1:
                prompts.append(sequence)
            else:  # it decodes
                rows = self._add_chunk(chunks, sequence, rows)
        for sequence in prompts:
            rows = self._add_chunk(chunks, sequence, rows)
        admitted: list[RequestId] = []
        starving = self._starving()
        while rows > 0 and len(self.running) < self.limits.max_running:
            newcomer = self._admit_next(starving)
            if newcomer is None:
                break
            admitted.append(newcomer.request.id)
            rows = self._add_chunk(chunks, newcomer, rows)
        self._add_draft_tokens(chunks, rows)
        return Plan(self._steps, tuple(chunks), tuple(admitted), tuple(preempted))

    def commit(self, chunk: Chunk, accepted: int = 0) -> Sequence:
        """Record that a chunk was computed: its full blocks enter the prefix cache, those behind the window are freed.

        Args:  accepted  draft tokens of the chunk accepted so far; they are in the sequence's tokens already
        An accepted draft token is charged here. A rejected one is not charged: its row would have stayed empty.
        """
        sequence = self.running[chunk.request_id]
        if accepted > 0:
            self.counter.charge(sequence.request.flow, weight=sequence.request.weight, completion_tokens=1)
        sequence.computed = chunk.stop + accepted
        if sequence.reached < sequence.num_prompt:
            sequence.reached = max(sequence.reached, min(sequence.computed, sequence.num_prompt))
        if sequence.prompt_lookup is not None and not chunk.is_sampled:
            sequence.prompt_lookup.index(sequence.tokens, chunk.num_rows)
        full = sequence.computed // self.pool.block_size
        if full > sequence.published:
            for index in range(sequence.published, full):
                self.pool.publish(sequence.blocks[index], sequence.prefix_key(index, self.pool.block_size))
            sequence.published = full
        if self.limits.sliding_window is not None:
            self._release_behind_window(sequence)
        return sequence

    def accept(self, chunk: Chunk, accepted: int) -> None:
        """Accept the first `accepted` draft tokens of a chunk and reject the rest: free the blocks of rejected ones."""
        sequence = self.running[chunk.request_id]
        self.pool.release(sequence.take_blocks_from(self.retention.blocks_for(len(sequence.tokens))))
        if sequence.prompt_lookup is not None:
            sequence.prompt_lookup.note(len(chunk.draft_tokens), accepted)

    def _release_behind_window(self, sequence: Sequence) -> None:
        """Give back the blocks that no later row of a sequence reads; those in the prefix cache stay findable."""
        first = self.retention.first_needed(sequence.computed)
        if first > sequence.released:
            self.pool.release(sequence.take_blocks_before(first))

    # ── steps of the plan ────────────────────────────────────────────────────────────────────────────────────────

    def _make_room(self) -> list[RequestId]:
        """Give every running sequence the blocks that its next rows need; preempt the newest if blocks run out."""
        preempted: list[RequestId] = []
        size = self.pool.block_size
        short = [one for one in self.running.values() if len(one.tokens) > len(one.blocks) * size]
        for sequence in short:
            while sequence.request.id in self.running:
                missing = self._wanted_blocks(sequence, sequence.released) - len(sequence.blocks)
                blocks = self._allocate(missing)
                if blocks is not None:
                    sequence.add_blocks(blocks)
                    break
                # The oldest sequence is preempted last, and one alone always fits (`Engine.submit` checks it).
                victim = next(reversed(self.running.values()))
                self._preempt(victim)
                preempted.append(victim.request.id)
        return preempted

    def _allocate(self, count: int) -> list[int] | None:
        """Allocate blocks, if need be after taking back those lent to idle adapters; None if too few are left."""
        short = count - self.pool.num_free
        return None if short > 0 and not self._gate.reclaim(short) else self.pool.allocate(count)

    def _preempt(self, sequence: Sequence) -> None:
        """Free a sequence's blocks and put it at the head of its flow's queue; it keeps its adapter pinned."""
        del self.running[sequence.request.id]
        self.pool.release(sequence.drop_blocks())
        self._queues.setdefault(sequence.request.flow, deque()).appendleft(sequence)

    def _add_chunk(self, chunks: list[Chunk], sequence: Sequence, rows: int) -> int:
        """Plan as much of the sequence's remaining work as fits in `rows`; return the rows left."""
        start, end = sequence.computed, len(sequence.tokens)
        count = min(end - start, rows)
        if count == 0:
            return rows
        stop = start + count
        is_sampled = stop == end
        request = sequence.request
        chunks.append(Chunk(request.id, start, stop, is_sampled))
        new_prompt = 0
        if sequence.charged < sequence.num_prompt:
            new_prompt = max(0, min(stop, sequence.num_prompt) - max(start, sequence.charged))
            sequence.charged = max(sequence.charged, min(stop, sequence.num_prompt))
        self.counter.charge(
            request.flow, weight=request.weight, prompt_tokens=new_prompt, completion_tokens=int(is_sampled)
        )
        return rows - count

    def _add_draft_tokens(self, chunks: list[Chunk], rows: int) -> None:
        """Use rows left over for draft tokens of the sequences that draw a token, if those are few."""
        if self.limits.max_draft_tokens == 0 or sum(chunk.is_sampled for chunk in chunks) > self.limits.draft_width:
            return
        for index, chunk in enumerate(chunks):
            if rows <= 0:
                break
            if chunk.is_sampled:
                sequence = self.running[chunk.request_id]
                if draft := sequence.draft_tokens(self._room_for_draft(sequence, rows)):
                    self._extend(sequence, len(draft))
                    chunks[index] = dataclasses.replace(chunk, draft_tokens=draft)
                    rows -= len(draft)

    def _room_for_draft(self, sequence: Sequence, rows: int) -> int:
        """Draft tokens of one sequence for which there are both rows and blocks."""
        room = (len(sequence.blocks) + self.pool.num_free) * self.pool.block_size - len(sequence.tokens)
        return min(self.limits.max_draft_tokens, rows, room)

    def _extend(self, sequence: Sequence, count: int) -> None:
        """Allocate the blocks of `count` positions after the sequence's tokens; enough blocks are free."""
        wanted = self.retention.blocks_for(len(sequence.tokens) + count)
        fresh = self.pool.allocate(max(0, wanted - len(sequence.blocks)))
        if fresh is None:
            raise AssertionError("blocks counted as free were not there")
        sequence.add_blocks(fresh)

    def _admit_next(self, starving: Sequence | None) -> Sequence | None:
        """Start the next sequence in fair order, or return None if none can start now."""
        refused: set[AdapterRef] = set()
        for sequence in self._fair_order():
            adapter = sequence.request.adapter
            if adapter is not None and sequence.placed is None:
                is_held_back = starving is not None and adapter != starving.request.adapter
                if is_held_back or adapter in refused:
                    continue
                if not self._gate.pin(sequence):
                    refused.add(adapter)
                    if sequence.refused_at is None:
                        sequence.refused_at = self._steps
                    self._has_refused = True
                    if len(refused) >= MAX_LOOKED_PAST:
                        return None
                    continue
            elif sequence.root is None:
                self._gate.pin(sequence)
            if not self._take_blocks(sequence):
                if sequence.cached_tokens is None:
                    self._gate.unpin(sequence)
                return None
            self._leave_queue(sequence)
            return sequence
        return None

    def _starving(self) -> Sequence | None:
        """Return the queued sequence whose adapter has lacked room longest, if for `PATIENCE_STEPS` or more."""
        if not self._has_refused:
            return None
        refused = [sequence for sequence in self.waiting() if sequence.refused_at is not None]
        self._has_refused = bool(refused)
        first = min(refused, key=lambda sequence: sequence.refused_at or 0, default=None)
        return first if first is not None and self._steps - (first.refused_at or 0) >= PATIENCE_STEPS else None

    def _fair_order(self) -> Iterator[Sequence]:
        """Yield queued sequences: flows from the least to the most served, each flow in order of arrival."""
        for flow in sorted(self._queues, key=self.counter.served):
            yield from list(self._queues[flow])

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Reserve blocks for the sequence's tokens, reusing cached ones; return False if too few are free."""
        size = self.pool.block_size
        # The last token is always computed, because the step needs its logits.
        most = (len(sequence.tokens) - 1) // size
        first, reused = self.pool.match(lambda index: sequence.prefix_key(index, size), most, self.retention)
        missing = self._wanted_blocks(sequence, first) - first - len(reused)
        short = missing - self.pool.free_after_holding(reused)
        if short > 0 and not self._gate.reclaim(short):
            return False
        self.pool.hold(reused)
        fresh = self.pool.allocate(missing)
        if fresh is None:
            raise AssertionError("blocks counted as free were not there")
        sequence.resume_at(first, reused, size)
        sequence.add_blocks(fresh)
        sequence.charged = max(sequence.charged, min(sequence.computed, sequence.num_prompt))
        if sequence.cached_tokens is None:
            sequence.cached_tokens = min(sequence.computed, sequence.num_prompt)
        return True

    def _leave_queue(self, sequence: Sequence) -> None:
        flow = sequence.request.flow
        self._queues[flow].remove(sequence)
        self._drop_if_empty(flow)
        sequence.refused_at = None
        self.running[sequence.request.id] = sequence
        self.counter.leave(flow)

    def _queue_of(self, flow: Flow) -> "deque[Sequence]":
        if flow not in self._queues:
            self.counter.arrive(flow, self._queues)
            self._queues[flow] = deque()
        return self._queues[flow]

    def _drop_if_empty(self, flow: Flow) -> None:
        if not self._queues[flow]:
            del self._queues[flow]

    def _wanted_blocks(self, sequence: Sequence, released: int) -> int:
        """Return the blocks of the sequence's tokens, or as far on as it may hold blocks; `released` ones count."""
        every = self.retention.blocks_for(len(sequence.tokens))
        return min(every, released + self.retention.most_blocks(len(sequence.tokens)))
