"""An engine over the simulated executor and store."""

from collections.abc import Callable, Iterable
from math import inf

from manylora.clock import ManualClock
from manylora.engine.adapter_port import AdapterStore
from manylora.engine.engine import Engine
from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.execution.executor import Executor
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
from manylora.engine.scheduling.step import StepLimits
from manylora.engine.scheduling.work import RowWork
from manylora.errors import Unavailable
from manylora.ids import Flow, RequestId
from manylora.models.text.adapter_text import AddedToken
from tests.engine.simulation.executor import SimulatedExecutor
from tests.engine.simulation.model import VOCAB, ref_of
from tests.engine.simulation.store import SimulatedStore

GREEDY = SamplingParams(temperature=0.0)
WITHOUT_ATTENTION = RowWork()


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
        max_gap_steps: float = inf,
        seconds_of: Callable[[Plan], float] = lambda plan: 0.0,
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
            max_gap_steps=max_gap_steps,
        )
        self.executor.elapse = lambda plan: self.clock.advance(seconds_of(plan))
        self.scheduler = Scheduler(self.pool, limits, pins)
        self.engine = Engine(
            scheduler=self.scheduler,
            executor=open_executor(self.executor) if open_executor else self.executor,
            store=self.store,
            pins=pins,
            grammars=grammars or GrammarCompiler(Vocabularies(_no_vocabulary, lambda added: {}), self.clock),
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
