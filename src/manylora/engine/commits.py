"""The commit of a step's results: tokens, scores and pooled rows enter their sequences, and some of these end."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from manylora.engine.adapter_port import AdapterStore
from manylora.engine.events import FinishReason, PooledValues, TokenEvent
from manylora.engine.execution.sampler import Drawn, prompt_scores
from manylora.engine.limits import no_token_left
from manylora.engine.pooling import Floats
from manylora.engine.scheduling.plan import Chunk
from manylora.engine.scheduling.scheduler import Scheduler
from manylora.engine.scheduling.sequence import Sequence
from manylora.engine.stopping import Stop
from manylora.errors import EngineFault, ManyloraError


@dataclass(frozen=True, slots=True)
class End:
    """The end of one request.

    stop_string  set for STOP_STRING alone
    pooled       the result of a request that draws no token
    """

    reason: FinishReason
    error: ManyloraError | None = None
    stop_string: str | None = None
    pooled: PooledValues | None = None


class Commits:
    """Takes the results of a step chunk by chunk, and keeps the events of its tokens until they are taken.

    Args of the constructor:  totals  the engine's counters; those of draft tokens and dead ends are counted here
    Thread: the engine's.
    """

    def __init__(self, scheduler: Scheduler, store: AdapterStore, totals: Counter[str]) -> None:
        self._scheduler = scheduler
        self._store = store
        self._totals = totals
        self._tokens: list[TokenEvent] = []

    def take_tokens(self) -> tuple[TokenEvent, ...]:
        """Return the events of the tokens committed since the last call."""
        taken, self._tokens = tuple(self._tokens), []
        return taken

    def commit(self, chunk: Chunk, result: "tuple[Drawn, ...] | Floats") -> End | None:
        """Commit a chunk with the executor's result for it; return the end of its request, or None if it goes on.

        Args:  result  the tokens drawn, or (rows, width) float32 for a request that draws none
        """
        sequence = self._scheduler.running[chunk.request_id]
        if isinstance(result, np.ndarray):
            return self._commit_pooled(chunk, sequence, result)
        return self._commit_drawn(chunk, sequence, result)

    def _commit_pooled(self, chunk: Chunk, sequence: Sequence, rows: Floats) -> End | None:
        """Commit a chunk with rows of its request's result; the last chunk ends the request."""
        assert sequence.pooled is not None  # only such requests have rows
        if not np.isfinite(rows).all():
            return self._end_poisoned(sequence)
        self._scheduler.commit(chunk)
        sequence.pooled.take(rows)
        if chunk.stop == len(sequence.tokens):
            return End(FinishReason.LENGTH, pooled=sequence.pooled.result())
        return None

    def _commit_drawn(self, chunk: Chunk, sequence: Sequence, drawn: tuple[Drawn, ...]) -> End | None:
        """Commit a chunk and the tokens drawn after it, one by one as if each had had a step of its own.

        All drawn tokens but the last are accepted draft tokens. Tokens drawn after one that ends the generation are
        neither returned nor counted.
        """
        if chunk.num_scored:
            scores, drawn = prompt_scores(drawn[: chunk.num_scored]), drawn[chunk.num_scored :]
            if scores is None:
                return self._end_poisoned(sequence)
            sequence.scores += scores
        if not drawn:  # the middle of a prompt
            self._scheduler.commit(chunk)
            return None
        if chunk.draft_tokens:
            self._totals["draft_tokens"] += len(chunk.draft_tokens)
        for accepted, one in enumerate(drawn):
            if not one.is_finite:
                # Before anything that was computed with this row becomes findable in the prefix cache.
                return self._end_poisoned(sequence)
            if one.is_barred:
                self._totals["dead_ends"] += sequence.matcher is not None
                return End(FinishReason.REJECTED, no_token_left(sequence))
            self._scheduler.commit(chunk, accepted)
            if accepted > 0:
                self._totals["accepted_tokens"] += 1
            if sequence.request.stop.max_new_tokens == 0:  # the prompt alone was asked for
                return End(FinishReason.LENGTH)
            stop = self._append(sequence, one)
            if stop is not None:
                return End(stop.reason, stop_string=stop.stop_string)
        if chunk.draft_tokens:
            self._scheduler.accept(chunk, len(drawn) - 1)
        return None

    def _end_poisoned(self, sequence: Sequence) -> End:
        """Return the end of the one request whose logits are not finite, and report its adapter version to the store.

        The weights of a mix are the caller's: they alone may be at fault, so that no adapter of it is suspected.
        """
        if sequence.placed is not None and not sequence.placed.parts:
            self._store.suspect(sequence.placed)
        fault = EngineFault("Request failed during generation: the logits are not finite")
        return End(FinishReason.ENGINE_FAILURE, fault)

    def _append(self, sequence: Sequence, drawn: Drawn) -> Stop | None:
        """Append a drawn token to its sequence and record its event; return a `Stop` if it is the last one."""
        token_id = drawn.token_id
        sequence.tokens.append(token_id)
        if sequence.rules is not None:
            sequence.rules.advance(token_id)
        num_generated = len(sequence.tokens) - sequence.num_prompt
        event = TokenEvent(sequence.request.id, token_id, drawn.logprob, drawn.alternatives)
        if num_generated == 1:
            event = event._replace(
                adapter=sequence.adapter_use,
                queue_ms=sequence.queue_ms,
                cached_tokens=sequence.cached_tokens,
                prompt=sequence.scored_prompt,
            )
        self._tokens.append(event)
        stop = sequence.stopper.push(token_id, num_generated)
        if stop is None and (matcher := sequence.matcher) is not None:
            matcher.advance(token_id)
            if matcher.is_over:
                return Stop(reason=FinishReason.END_OF_SEQUENCE)
        return stop
