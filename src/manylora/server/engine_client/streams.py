"""One request's events on their way from the engine to whoever answers it."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping

from manylora.engine.events import Finished, FinishReason, StepEvents, TokenEvent
from manylora.engine.request import Request
from manylora.errors import ManyloraError
from manylora.failure import Failure
from manylora.ids import RequestId
from manylora.usage import Counts

Abort = Callable[[RequestId, FinishReason], None]


class SequenceStream:
    """The events of one request, in order: tokens, then one `Finished`. One reader.

    It is bounded by the request itself: no more events can come than its budget of tokens. Leaving before the end
    must be said with `close`, which ends the work in the engine within one step.
    """

    __slots__ = (
        "_abort",
        "_arrived",
        "_events",
        "cached_tokens",
        "finished",
        "is_closed",
        "num_tokens",
        "opened_s",
        "request",
    )

    def __init__(self, request: Request, abort: Abort, opened_s: float = 0.0) -> None:
        """`opened_s`: the moment on the edge's clock when the engine was handed the request."""
        self.request = request
        self.opened_s = opened_s
        self.num_tokens = 0
        self.cached_tokens = 0  # as the first token told
        self.finished: Finished | None = None
        self.is_closed = False
        self._abort = abort
        self._events: deque[TokenEvent | Finished] = deque()
        self._arrived = asyncio.Event()

    def put(self, event: TokenEvent | Finished) -> None:
        """Called by the link only."""
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.num_tokens += 1
            self.cached_tokens = self.cached_tokens if event.cached_tokens is None else event.cached_tokens
        if not self.is_closed:
            self._events.append(event)
            self._arrived.set()

    async def ready(self) -> None:
        """Wait until `take` has something to give. Cancelling it loses nothing."""
        await self._arrived.wait()

    def take(self) -> TokenEvent | Finished:
        """The next event, which must be there."""
        event = self._events.popleft()
        if not self._events:
            self._arrived.clear()
        return event

    def peek(self) -> TokenEvent | Finished | None:
        """The next event without taking it; None if there is none yet."""
        return self._events[0] if self._events else None

    @property
    def is_ready(self) -> bool:
        return bool(self._events)

    @property
    def is_at_last_token(self) -> bool:
        """Whether no token follows the one taken last: only the end is left."""
        return len(self._events) == 1 and isinstance(self._events[0], Finished)

    def close(self, reason: FinishReason = FinishReason.DISCONNECT) -> None:
        """Stop reading. If the request has not ended, it is aborted with `reason`."""
        if self.is_closed:
            return
        self.is_closed = True
        self._events.clear()
        if self.finished is None:
            self._abort(self.request.id, reason)


class InFlightStreams:
    """Every request in the engine by its id; hands each event to its generation, and forgets it at its `Finished`."""

    def __init__(self, on_finished: Callable[[SequenceStream, Finished], None] | None = None) -> None:
        self._generations: dict[RequestId, SequenceStream] = {}
        self._on_finished = on_finished

    def __len__(self) -> int:
        return len(self._generations)

    def add(self, generation: SequenceStream) -> None:
        self._generations[generation.request.id] = generation

    def remove(self, generation: SequenceStream) -> None:
        """Forget one that never reached the engine."""
        self._generations.pop(generation.request.id, None)

    def requests(self) -> list[Request]:
        return [generation.request for generation in self._generations.values()]

    def deliver(self, events: StepEvents) -> None:
        """Hand a whole step over before any reader runs: a last token never comes without its end."""
        for token in events.tokens:
            if (generation := self._generations.get(token.request_id)) is not None:
                generation.put(token)
        for finished in events.finished:
            self._finish(finished)

    def unstarted(self) -> list[SequenceStream]:
        """Generations that have had no token yet."""
        return [generation for generation in self._generations.values() if not generation.num_tokens]

    def end(self, generation: SequenceStream, reason: FinishReason, error: ManyloraError, counts: Counts) -> None:
        """End one request from the edge's side; what the engine still sends of it is dropped."""
        failure = Failure.of(error)
        self._finish(Finished(request_id=generation.request.id, reason=reason, counts=counts, failure=failure))

    def end_all(
        self,
        reason: FinishReason,
        error_of: Callable[[Request], ManyloraError],
        counted: Mapping[RequestId, Counts],
    ) -> None:
        """End everything from the edge's side, because the engine is gone; `counted`: what it had counted itself."""
        for generation in list(self._generations.values()):
            request = generation.request
            told = Counts(
                prompt_tokens=len(request.tokens),
                cached_tokens=generation.cached_tokens,
                completion_tokens=generation.num_tokens,
            )
            self.end(generation, reason, error_of(request), counted.get(request.id, told))

    def _finish(self, finished: Finished) -> None:
        generation = self._generations.pop(finished.request_id, None)
        if generation is None:
            return
        generation.put(finished)
        if self._on_finished is not None:
            self._on_finished(generation, finished)
