"""An engine whose model is a checksum and whose KV cache is a dictionary: every law of batching without arithmetic.

The simulated executor writes who computed what (adapter version, salt, position, token) into the slot the plan gives a
row, and it reads back through the sequence's blocks all that the row sees. A block shared with the wrong
adapter, reused too early or forgotten shows at once, and the token drawn is a function of (adapter, tokens) alone, so
any change of batch must not change it.
"""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from manylora.adapter_ref import AdapterRef, SourceName, mixed_ref
from manylora.adapter_state import NO_WORDS, AdapterAction, AdapterHandle, AdapterInfo, AdapterWords
from manylora.clock import ManualClock
from manylora.engine.adapter_port import AdapterState, AdapterStore, StoreStats
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.execution.executor import Executor
from manylora.engine.execution.sampler import Drawn
from manylora.engine.grammars.compiler import GrammarCompiler
from manylora.engine.grammars.compiling import Vocabulary
from manylora.engine.grammars.vocabularies import Vocabularies
from manylora.engine.limits import EngineLimits
from manylora.engine.request import Priority, Request, SamplingParams, StopParams
from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.lending import KvLender
from manylora.engine.scheduling.pins import AdapterPins
from manylora.engine.scheduling.plan import Plan
from manylora.engine.scheduling.scheduler import Scheduler
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.scheduling.step import StepLimits
from manylora.engine.scheduling.work import RowWork
from manylora.errors import AdapterCorrupt, ManyloraError, Unavailable
from manylora.ids import Digest, Flow, RequestId
from manylora.models.text.adapter_text import AddedToken

VOCAB = 97
GREEDY = SamplingParams(temperature=0.0)
WITHOUT_ATTENTION = RowWork()


def next_token(identity: str, tokens: Iterable[int]) -> int:
    """The simulated model: a checksum of who speaks and what was said.

    Two times in three it says again what followed its last token before, if anything did, so that prompt look-up
    drafts tokens.
    """
    said = list(tokens)
    checksum = zlib.crc32(f"{identity}|{said}".encode())
    earlier = [after for before, after in itertools.pairwise(said) if before == said[-1]]
    return earlier[-1] if earlier and checksum % 3 else checksum % VOCAB


def _parts(adapter: str) -> list[tuple[str, float]]:
    """Names and weights of a mix, written `one*0.5+two*-2.0`."""
    pairs = (part.partition("*") for part in adapter.split("+"))
    return [(name, float(weight or "1")) for name, _, weight in pairs]


def ref_of(adapter: str) -> AdapterRef:
    names, weights = zip(*_parts(adapter), strict=True)
    return mixed_ref([AdapterRef(SourceName.LOCAL, name) for name in names], weights)


def identity_of(adapter: str | None) -> str:
    """The digest of an adapter or a mix of adapters, each in its version 0."""
    if adapter is None:
        return ""
    if "*" not in adapter:
        return f"{adapter}@0"
    versions = ",".join(f"{name}@0*{weight!r}" for name, weight in _parts(adapter))
    return hashlib.sha256(f"mix:{versions}".encode()).hexdigest()


def score_of(identity: str, before: Iterable[int], token_id: int) -> float:
    """The simulation's log-probability of a token after others."""
    return -float(abs(next_token(identity, before) - token_id))


def logits_of(likeliest: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Logits whose order tells the likeliest token: it comes first, then the ones after it, round the vocabulary."""
    return -((np.arange(VOCAB) - likeliest) % VOCAB).astype(np.float32)


@dataclass
class SimulatedKv:
    """Sizes without memory; every block can be discarded."""

    num_blocks: int
    block_size: int
    num_bytes: int = 0

    def discard(self, first: int, stop: int) -> bool:
        return True


class SimulatedExecutor:
    """A simulated `Executor`; `mismatches` says where the cache does not hold what the sequence computed.

    They are noted, not raised: the engine takes what an executor raises for a fault of the step, and goes on.
    """

    def __init__(self, num_blocks: int, block_size: int, sliding_window: int | None = None) -> None:
        self.kv = SimulatedKv(num_blocks, block_size)
        self.block_size = block_size
        self.sliding_window = sliding_window
        self.slots: dict[int, tuple[str, str, int, int]] = {}
        self.mismatches: list[tuple[object, object]] = []
        self.plans: list[Plan] = []
        self.is_closed = False
        self.fail_next = False
        self.poisoned: dict[RequestId, int] = {}  # from so many tokens on its logits are not finite

    def execute(self, plan: Plan, running: Mapping[RequestId, Sequence]) -> dict[RequestId, tuple[Drawn, ...]]:
        self.plans.append(plan)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("the step failed")
        for chunk in plan.chunks:
            sequence = running[chunk.request_id]
            tokens = [*sequence.tokens[: chunk.stop], *chunk.draft_tokens]
            for position in range(chunk.start, len(tokens)):
                self.slots[self._slot(sequence, position)] = _written(sequence, position, tokens[position])
            self._read_back(sequence, tokens, chunk.start)
        found: dict[RequestId, tuple[Drawn, ...]] = {}
        for chunk in plan.chunks:
            sequence = running[chunk.request_id]
            answers = [self._score(sequence, position) for position in range(*chunk.scored)]
            if chunk.is_sampled:
                answers += self._draw(sequence, chunk.draft_tokens)
            if answers:
                found[chunk.request_id] = tuple(answers)
        return found

    def start_profile(self) -> None:
        return None

    def release(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True

    def _score(self, sequence: Sequence, position: int) -> Drawn:
        before, token_id = sequence.tokens[: position + 1], sequence.tokens[position + 1]
        is_finite = position < self.poisoned.get(sequence.request.id, position + 1)
        return Drawn(token_id, score_of(_identity(sequence), before, token_id), is_finite=is_finite)

    def _draw(self, sequence: Sequence, draft: tuple[int, ...]) -> Iterator[Drawn]:
        tokens, rules = list(sequence.tokens), sequence.rules
        for expected in (*draft, None):
            self._read_back(sequence, tokens, len(tokens) - 1)
            token_id = next_token(_identity(sequence), tokens)
            if rules is not None:
                logits = rules.apply(logits_of(token_id))
                token_id = int(logits.argmax())
                if np.isneginf(logits[token_id]):
                    yield Drawn(token_id, is_barred=True)
                    return
                rules = rules.after(token_id)
            is_finite = len(tokens) < self.poisoned.get(sequence.request.id, len(tokens) + 1)
            yield Drawn(token_id=token_id, is_finite=is_finite)
            if token_id != expected or not is_finite:
                return
            tokens.append(token_id)

    def _slot(self, sequence: Sequence, position: int) -> int:
        return int(sequence.block_ids[position // self.block_size]) * self.block_size + position % self.block_size

    def _read_back(self, sequence: Sequence, tokens: list[int], row: int) -> None:
        """Compare all that the row at position `row`, and the rows after it, see."""
        first = 0 if self.sliding_window is None else max(0, row - self.sliding_window + 1)
        for position in range(first, len(tokens)):
            is_held = position // self.block_size >= sequence.released
            found = self.slots.get(self._slot(sequence, position)) if is_held else None
            wanted = _written(sequence, position, tokens[position])
            if found != wanted:
                self.mismatches.append((found, wanted))


def _identity(sequence: Sequence) -> str:
    return "" if sequence.placed is None else sequence.placed.digest


def _written(sequence: Sequence, position: int, token: int) -> tuple[str, str, int, int]:
    """What a slot must say, from the request itself: nothing here comes from the cache's own keys."""
    return (_identity(sequence), sequence.request.salt, position, token)


@dataclass
class SimulatedStore:
    """Stands in for the adapter store: loads take `polls_to_load` polls, the bank holds `capacity` adapters."""

    capacity: int = 4
    polls_to_load: int = 2
    failing: set[str] = field(default_factory=set)
    resident: dict[AdapterRef, AdapterHandle] = field(default_factory=dict)
    pins: dict[str, int] = field(default_factory=dict)
    loading: dict[AdapterRef, int] = field(default_factory=dict)
    host: set[AdapterRef] = field(default_factory=set)
    failed: dict[AdapterRef, ManyloraError] = field(default_factory=dict)
    version: int = 0

    def want(self, ref: AdapterRef, flow: Flow | None = None) -> AdapterState:
        if ref in self.failed:
            return AdapterState.FAILED
        if ref in self.resident:
            return AdapterState.ON_DEVICE
        if ref in self.host:
            return AdapterState.IN_HOST
        if ref not in self.loading:
            self.loading[ref] = self.polls_to_load
            return AdapterState.ABSENT
        return AdapterState.FETCHING

    def poll(self) -> None:
        for ref in list(self.loading):
            self.loading[ref] -= 1
            if self.loading[ref] <= 0:
                del self.loading[ref]
                if ref.id in self.failing:
                    self.failed[ref] = AdapterCorrupt(f"Adapter '{ref.id}' cannot be read: it is broken")
                else:
                    self.host.add(ref)

    def pin(self, ref: AdapterRef) -> AdapterHandle | None:
        if ref not in self.resident:
            if ref not in self.host or not self._make_room():
                return None
            digest = Digest(f"{ref.id}@{self.version}")
            self.resident[ref] = AdapterHandle(ref=ref, digest=digest)
        placed = self.resident[ref]
        self.pins[placed.digest] = self.pins.get(placed.digest, 0) + 1
        return placed

    def _make_room(self) -> bool:
        while len(self.resident) >= self.capacity:
            idle = [ref for ref, placed in self.resident.items() if not self.pins.get(placed.digest)]
            if not idle:
                return False
            del self.resident[idle[0]]
        return True

    def unpin(self, placed: AdapterHandle, *, was_used: bool = True) -> None:
        self.pins[placed.digest] -= 1
        assert self.pins[placed.digest] >= 0, "unpinned more often than pinned"

    def suspect(self, placed: AdapterHandle) -> None:
        pass

    def text(self, ref: AdapterRef) -> AdapterWords | None:
        return NO_WORDS

    def text_digest(self, ref: AdapterRef) -> str:
        return ""

    def failure(self, ref: AdapterRef) -> ManyloraError | None:
        return self.failed.get(ref)

    def lacks_room(self, ref: AdapterRef) -> bool:
        return False  # what is loaded here is in host memory

    def joint_failure(self, refs: object) -> None:
        pass  # adapters here have no size

    def unwant(self, ref: AdapterRef) -> None:
        pass  # its loads go on without waiters

    def begun(self) -> list[tuple[AdapterRef, int]]:
        return []

    def give_back(self, num_bytes: int) -> bool:
        return False  # nothing was lent

    @property
    def is_busy(self) -> bool:
        return bool(self.loading)

    def manage(self, action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
        return self.info(ref)

    def info(self, ref: AdapterRef) -> AdapterInfo:
        state = AdapterState.ON_DEVICE if ref in self.resident else AdapterState.ABSENT
        return AdapterInfo(id=ref.id, source=ref.source.value, state=state)

    def infos(self) -> tuple[AdapterInfo, ...]:
        return tuple(self.info(ref) for ref in self.resident)

    def close(self) -> None:
        self.loading.clear()

    def stats(self) -> StoreStats:
        return StoreStats(
            bank_bytes_total=self.capacity,
            bank_bytes_used=len(self.resident),
            host_bytes_used=0,
            disk_bytes_used=0,
            on_device=len(self.resident),
            in_host=len(self.host),
            on_disk=0,
            loads=0,
            failures=len(self.failed),
            evictions=0,
        )


def _no_vocabulary(added: tuple[AddedToken, ...]) -> Vocabulary:
    raise Unavailable("this world has no vocabulary for grammars")


class World:
    """A simulated engine, with what a test wants to look at."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_rows: int = 32,
        max_running: int = 8,
        batch_rows: int = 16,
        store: AdapterStore | None = None,
        prefix_cache: bool = True,
        max_waiting: int = 10_000,
        clock: ManualClock | None = None,
        guess_tokens: int = 0,
        guess_width: int = 4,
        max_model_len: int = 4096,
        sliding_window: int | None = None,
        row_work: RowWork = WITHOUT_ATTENTION,
        max_scored_rows: int = 5,
        open_lender: Callable[[BlockPool], KvLender] | None = None,
        open_executor: Callable[["SimulatedExecutor"], Executor] | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.clock = clock or ManualClock()
        self.store = store or SimulatedStore()
        self.pool = BlockPool(num_blocks, block_size, prefix_cache=prefix_cache)
        self.executor = SimulatedExecutor(num_blocks, block_size, sliding_window)
        pins = AdapterPins(self.store, open_lender and open_lender(self.pool))
        limits = StepLimits(
            max_rows=max_rows,
            max_running=max_running,
            max_draft_tokens=guess_tokens,
            draft_width=guess_width,
            sliding_window=sliding_window,
            batch_rows=batch_rows,
            row_work=row_work,
            max_scored_rows=max_scored_rows,
        )
        self.scheduler = Scheduler(self.pool, limits, pins)
        self.engine = Engine(
            scheduler=self.scheduler,
            executor=open_executor(self.executor) if open_executor else self.executor,
            store=self.store,
            pins=pins,
            grammars=grammars or GrammarCompiler(Vocabularies(_no_vocabulary), self.clock),
            clock=self.clock,
            limits=EngineLimits(max_model_len=max_model_len, vocab=VOCAB, max_waiting=max_waiting, max_queue_s=1e9),
            end_of_sequence=(),
            open_text=_no_text,
        )
        self.tokens: dict[RequestId, list[int]] = {}
        self.scores: dict[RequestId, list[float]] = {}  # of prompts
        self.finished: dict[RequestId, Finished] = {}
        self._submitted = 0

    def submit(
        self,
        prompt: Iterable[int],
        *,
        adapter: str | None = None,
        flow: str = "a",
        salt: str = "",
        budget: int = 4,
        sampling: SamplingParams = GREEDY,
        least: int = 0,
        stop_tokens: tuple[int, ...] = (),
        stop_strings: tuple[str, ...] = (),
        speculation: bool = True,
        weight: int = 1,
        priority: Priority = Priority.INTERACTIVE,
        prompt_logprobs: int | None = None,
    ) -> RequestId:
        self._submitted += 1
        request_id = RequestId(f"r{self._submitted}")
        self.engine.submit(
            Request(
                id=request_id,
                flow=Flow(flow),
                salt=salt,
                tokens=tuple(prompt),
                adapter=None if adapter is None else ref_of(adapter),
                sampling=sampling,
                stop=StopParams(
                    max_new_tokens=budget,
                    min_new_tokens=least,
                    stop_token_ids=stop_tokens,
                    stop_strings=stop_strings,
                ),
                speculation=speculation,
                weight=weight,
                priority=priority,
                prompt_logprobs=prompt_logprobs,
            )
        )
        return request_id

    def step(self) -> StepEvents:
        """One step; every event is checked against the ones before it."""
        events = self.engine.step()
        assert not self.executor.mismatches
        for token in events.tokens:
            assert token.request_id not in self.finished, "a token after the end"
            self.tokens.setdefault(token.request_id, []).append(token.token_id)
            self._note_scores(token)
        for end in events.finished:
            assert end.request_id not in self.finished, "a request ended twice"
            self.finished[end.request_id] = end
            self._note_scores(end)
        self.check_blocks()
        return events

    def _note_scores(self, event: TokenEvent | Finished) -> None:
        if event.prompt is not None:
            assert event.request_id not in self.scores, "a prompt was scored twice"
            self.scores[event.request_id] = [score.logprob for score in event.prompt]

    def check_blocks(self) -> None:
        """Each block is in one state, running sequences alone hold blocks, and none holds more than it may."""
        self.pool.check()
        held = [sequence.blocks[sequence.released :] for sequence in self.scheduler.running.values()]
        assert len(set().union(*held)) == self.pool.num_blocks - self.pool.num_free - self.pool.num_lent
        for sequence, blocks in zip(self.scheduler.running.values(), held, strict=True):
            assert len(blocks) <= self.scheduler.retention.most_blocks(len(sequence.tokens))
            assert len(set(blocks)) == len(blocks)

    def run(self, max_steps: int = 5_000) -> None:
        """Step until idle; the engine must then hold nothing."""
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"still busy after {max_steps} steps"
        self.engine.check()
        if isinstance(self.store, SimulatedStore):
            assert not any(self.store.pins.values()), "an idle engine holds pins"

    def abort(self, request_id: RequestId) -> None:
        self.engine.abort(request_id, FinishReason.DISCONNECT)


def _no_text(added: tuple[AddedToken, ...], skips_special: bool) -> "NoText":
    return NoText()


class NoText:
    """The simulation has no tokenizer: a token's text is its number in angle brackets."""

    def push(self, token_id: int) -> str:
        return f"<{token_id}>"

    def hidden(self, token_id: int) -> str:
        return ""


def alone(prompt: Iterable[int], identity: str, budget: int) -> list[int]:
    """What the simulated model generates for one request with nobody else there."""
    tokens = list(prompt)
    start = len(tokens)
    for _ in range(budget):
        tokens.append(next_token(identity, tokens))
    return tokens[start:]
