"""Outputs: the conversion of a request's tokens into the pieces of text that all dialects print.

An output detokenises a sequence, cuts the text at stop strings, and lists tokens with log-probabilities on demand.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from manylora.clock import Clock
from manylora.engine.events import AdapterUse, Finished, FinishReason, PooledValues, PromptScore, TokenEvent
from manylora.errors import IncompleteGeneration
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.text import Alternative, Piece, ReplyForm, StopCut, TextToken, TokenReport

LOWEST_LOGPROB = -9999.0
ENDS = (FinishReason.END_OF_SEQUENCE, FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH)


class SequenceOutput:
    """One sequence's tokens as pieces of its reply.

    The text excludes the token that ends the generation and, by default, special tokens. A stream keeps only the text
    that it holds back, so that its memory does not grow with the reply. `ReplyForm` can ask to keep more.
    """

    __slots__ = (
        *("_cut", "_detokenizer", "_ends", "_form", "_keeps_special", "_length", "_logprob_sum", "_num_sent"),
        *(
            "_min_tokens",
            "_num_taken",
            "_parts",
            "_pending",
            "_shown",
            "_tokenizer",
            "index",
            "prompt",
            "stream",
            "tokens",
        ),
    )

    def __init__(
        self,
        index: int,
        stream: SequenceStream,
        tokenizer: Tokenizer,
        form: ReplyForm,
        *,
        keeps_stop: bool,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """Start without text.

        Args:  keeps_stop  whether the text keeps the stop string or the token that ends the generation
               shown       special tokens that the text shows
        """
        stop = stream.request.stop
        self.index = index
        self.stream = stream
        self.tokens: list[TextToken] = []  # all reported ones, if the form keeps them
        self.prompt: tuple[TextToken, ...] | None = None  # the prompt's tokens with their scores, if asked for
        self._form = form
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.stream(skip_special_tokens=stop.skip_special_tokens, continues=True, shown=shown)
        self._shown = shown
        self._keeps_special = not stop.skip_special_tokens
        own = () if stop.ignore_eos else tokenizer.eos_ids
        self._ends = frozenset() if keeps_stop else frozenset((*stop.stop_token_ids, *own))
        has_cut = form.cuts_stops and stop.stop_strings
        self._cut = StopCut(stop.stop_strings, keeps_stop=keeps_stop) if has_cut else None
        self._parts: list[str] = []  # the text, if the form keeps it
        self._pending: list[TextToken] = []  # not reported yet
        self._length = 0  # characters of the text before the cut
        self._num_sent = 0  # characters
        self._logprob_sum = 0.0
        self._min_tokens = stop.min_new_tokens
        self._num_taken = 0  # number of tokens that the cut has received

    @property
    def text(self) -> str:
        """The text so far; empty if the form does not keep it."""
        return "".join(self._parts)

    @property
    def mean_logprob(self) -> float:
        return self._logprob_sum / max(1, self.stream.num_tokens)

    @property
    def is_cut(self) -> bool:
        """Return whether a stop string has ended the text."""
        return self._cut is not None and self._cut.is_cut

    @property
    def end(self) -> Finished:
        """The sequence's end. Raises `IncompleteGeneration` before it."""
        if self.stream.finished is None:
            raise IncompleteGeneration("Incomplete generation")
        return self.stream.finished

    def take(self, event: TokenEvent | Finished) -> Piece:
        """Return the piece for an event just read from the stream. The piece of the last token has the end, too.

        Raises the error with which the sequence failed.
        """
        if isinstance(event, Finished):
            raise_if_failed(event)
        if event.prompt is None:
            return self._taken(event)
        self.prompt = self._prompt_tokens(event.prompt)
        return self._taken(event)._replace(prompt=self.prompt)

    def _taken(self, event: TokenEvent | Finished) -> Piece:
        stream = self.stream
        if isinstance(event, Finished):
            return self._ended("", event)
        is_last = stream.is_at_last_token
        text = self._push(event, is_last=is_last)
        if is_last and stream.finished is not None and stream.finished.reason in ENDS:
            stream.take()
            return self._ended(text, stream.finished)
        return self._sent(text)

    def _ended(self, text: str, end: Finished) -> Piece:
        if self._cut is not None:
            text += self._cut.flush()
        return self._sent(text, end)

    def _sent(self, text: str, end: Finished | None = None) -> Piece:
        self._num_sent += len(text)
        if self._form.keeps_text:
            self._parts.append(text)
        is_cut = self.is_cut
        return Piece(self.index, text, self._reported(is_over=end is not None and not is_cut), end, is_cut)

    def _reported(self, *, is_over: bool) -> tuple[TextToken, ...]:
        """Return the pending tokens that go with the text sent so far."""
        if not self._pending:
            return ()
        if is_over or self._form.report is TokenReport.EVERY:
            ready, self._pending = tuple(self._pending), []
        else:
            ready = tuple(token for token in self._pending if token.offset < self._num_sent)
            self._pending = self._pending[len(ready) :]
        if self._form.keeps_tokens:
            self.tokens.extend(ready)
        return ready

    def _push(self, event: TokenEvent, *, is_last: bool) -> str:
        """Take the next token and return the text that may be sent.

        With the last token, the text includes an unfinished character.
        """
        token_id = event.token_id
        is_special = token_id in self._tokenizer.special_ids
        is_end = is_last and token_id in self._ends
        is_hidden = is_end or (is_special and not self._keeps_special and token_id not in self._shown)
        added = "" if is_hidden else self._detokenizer.push(token_id)
        if is_last:
            added += self._detokenizer.finish()
        self._logprob_sum += _finite(event.logprob)
        if self._reports(is_hidden=is_hidden, is_end=is_end):
            text = self._own_text(token_id) if is_hidden or is_special else added
            self._pending.append(self._token(event, text, is_special=is_special or is_end, is_hidden=is_hidden))
        self._length += len(added)
        if self._cut is None:
            return added
        self._num_taken += 1
        hidden = self._own_text(token_id) if is_hidden else ""
        return self._cut.push(added, hidden, may_end=self._num_taken > self._min_tokens)

    def _reports(self, *, is_hidden: bool, is_end: bool) -> bool:
        """Return whether the reply lists a token."""
        match self._form.report:
            case TokenReport.NONE:
                return False
            case TokenReport.IN_TEXT:
                return not is_hidden
            case TokenReport.TO_END:
                return is_end or not is_hidden
            case TokenReport.EVERY:
                return True

    def _token(self, event: TokenEvent, text: str, *, is_special: bool, is_hidden: bool) -> TextToken:
        return TextToken(
            id=event.token_id,
            text=text,
            offset=self._length,
            logprob=_finite(event.logprob),
            is_special=is_special,
            is_hidden=is_hidden,
            is_gained=event.is_gained,
            raw=b"" if event.logprob is None else self._tokenizer.token_bytes(event.token_id),
            alternatives=tuple(self._alternative(other, value) for other, value in event.alternatives),
        )

    def _prompt_tokens(self, scores: Sequence[PromptScore]) -> tuple[TextToken, ...]:
        """Return the tokens of the prompt; their offsets are in its text with all special tokens."""
        tokenizer, found, length = self._tokenizer, list[TextToken](), 0
        texts = tokenizer.stream(skip_special_tokens=False)
        for token_id, score in zip(self.stream.request.tokens, (None, *scores), strict=True):
            text = texts.push(token_id)
            found.append(
                TextToken(
                    id=token_id,
                    text=text,
                    offset=length,
                    logprob=None if score is None else _finite(score.logprob),
                    is_special=token_id in tokenizer.special_ids,
                    raw=tokenizer.token_bytes(token_id),
                    alternatives=tuple(self._alternative(*other) for other in (score.alternatives if score else ())),
                )
            )
            length += len(text)
        return tuple(found)

    def _alternative(self, token_id: int, logprob: float) -> Alternative:
        return Alternative(token_id, self._own_text(token_id), _finite(logprob), self._tokenizer.token_bytes(token_id))

    def _own_text(self, token_id: int) -> str:
        """Return the text of a token by itself; for a special token, its name in the vocabulary."""
        tokenizer = self._tokenizer
        is_special = token_id in tokenizer.special_ids
        return (tokenizer.piece(token_id) or "") if is_special else tokenizer.token_text(token_id)


class RequestOutputs:
    """The outputs of one request's sequences, in any order, and the times of the first tokens.

    Sequence numbers are prompt number × sequences per prompt + sequence of that prompt. At the end of a sequence the
    next one begins, as long as there is one, so that a request has no more sequences at one time than places.

    sequences      those that have begun, by their numbers
    first_token_s  moment of the first token of any sequence
    adapter_use    the adapter use of the first sequence with one
    queue_ms       the time in the queue of the first sequence that began
    """

    def __init__(
        self, begun: Sequence[SequenceOutput], begin_next: Callable[[], SequenceOutput | None], clock: Clock
    ) -> None:
        """Take over the first sequences. `begin_next` begins the next one, or returns None if all have begun."""
        self.sequences = list(begun)
        self.first_token_s: float | None = None
        self.adapter_use: AdapterUse | None = None
        self.queue_ms: float | None = None
        self._begin_next = begin_next
        self._clock = clock

    def _next(self) -> SequenceOutput | None:
        """Begin the next sequence and return it; None: all have begun."""
        if (sequence := self._begin_next()) is not None:
            self.sequences.append(sequence)
        return sequence

    @property
    def streams(self) -> list[SequenceStream]:
        return [sequence.stream for sequence in self.sequences]

    @property
    def pooled(self) -> list[PooledValues]:
        """The results of sequences with a `Pooling`, each after its end. Raises `IncompleteGeneration` before one."""
        found = [sequence.end.pooled for sequence in self.sequences]
        if any(each is None for each in found):
            raise IncompleteGeneration("Incomplete generation")
        return [each for each in found if each is not None]

    @property
    def num_generated_tokens(self) -> int:
        return sum(sequence.stream.num_tokens for sequence in self.sequences)

    @property
    def num_gained_tokens(self) -> int:
        return sum(sequence.stream.num_gained for sequence in self.sequences)

    @property
    def finished(self) -> list[Finished]:
        """The ends of the sequences that have ended."""
        return [stream.finished for stream in self.streams if stream.finished is not None]

    async def wait_for_head(self, wait_s: float) -> None:
        """Wait for the first event, at most `wait_s` seconds. Raises the failure of a sequence without a token."""
        try:
            async with asyncio.timeout(wait_s):
                await _any_ready(self.streams)
        except TimeoutError:
            return
        for stream in self.streams:
            if stream.finished is not None and not stream.num_tokens:
                raise_if_failed(stream.finished)
        self._note_first()

    async def collect(self) -> None:
        """Read all sequences to their ends. Raises as soon as one of them has failed."""
        readers = [asyncio.ensure_future(self._drain(sequence)) for sequence in list(self.sequences)]
        try:
            await asyncio.gather(*readers)
        finally:
            for reader in readers:
                reader.cancel()

    async def pieces(self, keepalive_s: float | None = None) -> AsyncIterator[Piece | None]:
        """Yield the pieces of all sequences as they arrive, and None after `keepalive_s` seconds without a piece."""
        reading = dict(enumerate(self.sequences))
        while reading:
            try:
                async with asyncio.timeout(keepalive_s):
                    await _any_ready([sequence.stream for sequence in reading.values()])
            except TimeoutError:
                yield None
                continue
            for index, sequence in list(reading.items()):
                while sequence.stream.is_ready:
                    piece = self._take(sequence)
                    if piece.end is not None:
                        del reading[index]
                        if (newcomer := self._next()) is not None:
                            reading[newcomer.index] = newcomer
                    yield piece

    def note_arrived(self) -> None:
        """Note the times of first tokens that have arrived and are not read yet, as in a reply that ends early."""
        if any(isinstance(stream.peek(), TokenEvent) for stream in self.streams):
            self._note_first()

    async def _drain(self, sequence: SequenceOutput | None) -> None:
        """Read a sequence to its end, and after it those that begin in its place."""
        while sequence is not None:
            await sequence.stream.ready()
            if self._take(sequence).end is not None:
                sequence = self._next()

    def _take(self, sequence: SequenceOutput) -> Piece:
        event = sequence.stream.take()
        if isinstance(event, TokenEvent):
            if self.first_token_s is None:
                self._note_first()
            if event.queue_ms is not None:  # a sequence's first token
                self._note_start(event)
        elif event.pooled is not None:  # such a sequence has no token
            self._note_start(event)
        return sequence.take(event)

    def _note_first(self) -> None:
        if self.first_token_s is not None:
            return
        self.first_token_s = self._clock.monotonic_s()
        for stream in self.streams:
            first = stream.peek()
            if isinstance(first, TokenEvent):
                self._note_start(first)

    def _note_start(self, event: TokenEvent | Finished) -> None:
        self.adapter_use = self.adapter_use or event.adapter
        self.queue_ms = event.queue_ms if self.queue_ms is None else self.queue_ms


async def _any_ready(streams: Sequence[SequenceStream]) -> None:
    """Wait until one of several streams has an event."""
    if any(stream.is_ready for stream in streams):
        return
    if len(streams) == 1:
        await streams[0].ready()
        return
    waiters = [asyncio.ensure_future(stream.ready()) for stream in streams]
    try:
        await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


def raise_if_failed(end: Finished) -> None:
    """Raise the error of a sequence that failed."""
    if end.failure is not None:
        raise end.failure.to_error()
    if end.reason not in ENDS:
        raise IncompleteGeneration("Incomplete generation")


def _finite(logprob: float | None) -> float:
    """Return a finite log-probability, which JSON can hold."""
    return LOWEST_LOGPROB if logprob is None or not logprob >= LOWEST_LOGPROB else logprob
