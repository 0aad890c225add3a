"""The generations of one HTTP request: opened together, read in any order, closed together whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from manylora.clock import Clock
from manylora.engine.events import AdapterUse, Finished, FinishReason, TokenEvent
from manylora.engine.request import Request
from manylora.errors import IncompleteGeneration, ManyloraError
from manylora.ids import RequestId
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.link import EngineLink
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.admission import AdmissionControl, PreparedPrompt
from manylora.server.generation.text import TextToken, Transcript

ENDS = (FinishReason.END_OF_SEQUENCE, FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH)


class RequestOutputs:
    """All sequences of one HTTP request, with the moments its headers and its log line need.

    Sequence numbers are prompt number × sequences per prompt + sequence of that prompt.
    """

    def __init__(
        self,
        drafts: Sequence[PreparedPrompt],
        generations: Sequence[SequenceStream],
        gate: AdmissionControl,
        clock: Clock,
        *,
        begun_s: float,
    ) -> None:
        """`begun_s` is the moment before the first sequence was opened: validation ends there.

        The wait for an adapter's text is no part of it: that is the queue's.
        """
        self.drafts = drafts
        self.generations = generations
        ends = [draft.keeps_stop for draft in drafts for _ in range(draft.num_sequences)]
        self.transcripts = [
            Transcript(tokenizer, generation.request.stop, keeps_stop=keeps_stop)
            for tokenizer, generation, keeps_stop in zip(_tokenizers(drafts, gate), generations, ends, strict=True)
        ]
        self.begun_s = begun_s - 1e-3 * max((d.rules.waited_ms for d in drafts if d.rules is not None), default=0.0)
        self.first_token_s: float | None = None
        self.adapter_use: AdapterUse | None = None
        self.queue_ms: float | None = None
        self.limit_headers: Callable[[], dict[str, str]] = dict
        self.settle: Callable[[], Awaitable[None]] = _nothing_to_settle
        """Await it when every sequence has ended, before the last of the reply leaves: its usage is then durable."""
        self._clock = clock

    async def wait_for_head(self, wait_s: float) -> None:
        """Wait until there is something to say, at most `wait_s`; raises what failed before the first token."""
        try:
            async with asyncio.timeout(wait_s):
                await _any_ready(self.generations)
        except TimeoutError:
            return
        for generation in self.generations:
            if generation.finished is not None and not generation.num_tokens:
                _raise_if_failed(generation.finished)
        self._note_first()

    async def collect(self) -> None:
        """Read every sequence to its end; raises as soon as one of them has failed."""
        readers = [asyncio.ensure_future(self._drain(index)) for index in range(len(self.generations))]
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()

    async def texts(self) -> AsyncIterator[str]:
        """The text of a single sequence as it comes."""
        async for event in self._read(0):
            if isinstance(event, TextToken) and event.added:
                yield event.added

    async def stream(self, keepalive_s: float) -> AsyncIterator[tuple[int, TextToken | Finished] | None]:
        """Tokens and ends of all sequences as they come, with their number; None when nothing came for that long."""
        open_ones = dict(enumerate(self.generations))
        while open_ones:
            try:
                async with asyncio.timeout(keepalive_s):
                    await _any_ready(list(open_ones.values()))
            except TimeoutError:
                yield None
                continue
            for index, generation in list(open_ones.items()):
                while generation.is_ready:
                    event = self._take(index)
                    yield index, event
                    if isinstance(event, Finished):
                        del open_ones[index]

    def is_last(self, index: int) -> bool:
        """Whether the token just read is followed by the end of its sequence."""
        return self.generations[index].is_at_last_token

    def end_of(self, index: int) -> Finished:
        """How a sequence ended."""
        finished = self.generations[index].finished
        if finished is None:
            raise IncompleteGeneration("Incomplete generation")
        return finished

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(draft.tokens) for draft in self.drafts)

    @property
    def num_generated_tokens(self) -> int:
        return sum(generation.num_tokens for generation in self.generations)

    @property
    def num_cached_tokens(self) -> int:
        """Cached tokens of each prompt's first sequence; the others share its prompt, which is counted once."""
        ends = [g.finished for g in self.generations]
        firsts = [ends[i] for i in self._first_sequences()]
        return sum(end.counts.cached_tokens for end in firsts if end is not None)

    def _first_sequences(self) -> Iterator[int]:
        index = 0
        for draft in self.drafts:
            yield index
            index += draft.num_sequences

    async def _drain(self, index: int) -> None:
        async for _ in self._read(index):
            pass

    async def _read(self, index: int) -> AsyncIterator[TextToken | Finished]:
        generation = self.generations[index]
        while True:
            await generation.ready()
            event = self._take(index)
            yield event
            if isinstance(event, Finished):
                return

    def _take(self, index: int) -> TextToken | Finished:
        generation = self.generations[index]
        event = generation.take()
        if isinstance(event, Finished):
            _raise_if_failed(event)
            self.transcripts[index].finished = event
            return event
        self._note_first()
        self._note_start(event)
        return self.transcripts[index].push(event, is_last=generation.is_at_last_token)

    def _note_start(self, event: TokenEvent) -> None:
        """Keep what a sequence's first token tells of its start, of the first sequence that has one."""
        self.adapter_use = self.adapter_use or event.adapter
        self.queue_ms = event.queue_ms if self.queue_ms is None else self.queue_ms

    def note_arrived(self) -> None:
        """Keep what first tokens tell that have come and that nobody has read yet: a short reply ends before that."""
        if any(isinstance(generation.peek(), TokenEvent) for generation in self.generations):
            self._note_first()

    def _note_first(self) -> None:
        if self.first_token_s is None:
            self.first_token_s = self._clock.monotonic_s()
            for generation in self.generations:
                first = generation.peek()
                if isinstance(first, TokenEvent):
                    self._note_start(first)


@contextmanager
def begin(
    link: EngineLink,
    gate: AdmissionControl,
    drafts: Sequence[PreparedPrompt],
    requests: Sequence[Request],
    clock: Clock,
    on_unsent: Callable[[Sequence[RequestId]], None] = lambda ids: None,
    why_left: Callable[[BaseException], FinishReason] = lambda error: FinishReason.DISCONNECT,
) -> Iterator[RequestOutputs]:
    """Open every sequence of the drafts; on leaving, those that have not ended are aborted.

    Args:  on_unsent  told which never reached the engine
           why_left   the reason with which an exception ends the others
    """
    opened: list[SequenceStream] = []
    # The engine is another process: it may begin, and even answer, before the next line of this one runs.
    begun_s = clock.monotonic_s()
    reason = FinishReason.DISCONNECT
    try:
        try:
            for request in requests:
                opened.append(link.generate(request))  # noqa: PERF401  what was opened before a failure must be closed
        except BaseException:
            on_unsent([request.id for request in requests[len(opened) :]])
            raise
        yield RequestOutputs(drafts, opened, gate, clock, begun_s=begun_s)
    except BaseException as error:
        reason = why_left(error)
        raise
    finally:
        for generation in opened:
            generation.close(reason)


def _tokenizers(drafts: Sequence[PreparedPrompt], gate: AdmissionControl) -> Iterator[Tokenizer]:
    """The one that each sequence's tokens are read with."""
    for draft in drafts:
        tokenizer = gate.tokenizer if draft.rules is None else draft.rules.tokenizer
        yield from (tokenizer for _ in range(draft.num_sequences))


async def _nothing_to_settle() -> None:
    return


async def _any_ready(generations: Sequence[SequenceStream]) -> None:
    """Wait until one of several generations has an event."""
    if any(generation.is_ready for generation in generations):
        return
    if len(generations) == 1:
        await generations[0].ready()
        return
    waiters = [asyncio.ensure_future(generation.ready()) for generation in generations]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


def _raise_if_failed(finished: Finished) -> None:
    if finished.failure is not None:
        raise finished.failure.to_error()
    if finished.reason not in ENDS:
        raise _incomplete()


def _incomplete() -> ManyloraError:
    return IncompleteGeneration("Incomplete generation")
