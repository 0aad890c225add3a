"""Questions of the edge for adapters' text facts, which it needs to make their prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manylora.adapter_ref import AdapterRef
from manylora.adapter_state import NO_WORDS, AdapterWords
from manylora.clock import Clock
from manylora.errors import ManyloraError, QueueTimeout
from manylora.ids import Flow

if TYPE_CHECKING:  # the edge, which reads the answers, runs without torch
    from manylora.engine.adapter_port import AdapterStore


@dataclass(frozen=True, slots=True, kw_only=True)
class TextAnswer:
    """The text of an adapter, or `error`, the reason why there is none.

    found_in   the tier that had the adapter when the question came
    waited_ms  milliseconds since the question
    """

    number: int
    words: AdapterWords = NO_WORDS
    error: ManyloraError | None = None
    found_in: str = ""
    waited_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class _Asked:
    ref: AdapterRef
    flow: Flow
    weight: int
    since_s: float
    found_in: str


class TextQuestions:
    """The open questions. Each repeats the wish for its adapter, as a waiting request does."""

    def __init__(self, store: "AdapterStore", clock: Clock, *, max_wait_s: float) -> None:
        self._store = store
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._asked: dict[int, _Asked] = {}
        self._answers: list[TextAnswer] = []

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def has_work(self) -> bool:
        return bool(self._asked or self._answers)

    def ask(self, number: int, ref: AdapterRef, flow: Flow, weight: int) -> None:
        """Take a question; an adapter on this machine answers it at once."""
        found_in = self._store.want(ref, flow).value
        self._asked[number] = _Asked(ref, flow, weight, self._clock.monotonic_s(), found_in)
        self._advance(number)

    def drop(self, number: int) -> None:
        """Drop a question whose asker has gone. An unknown number does nothing."""
        self._asked.pop(number, None)

    def advance(self) -> None:
        """Repeat the wishes and answer what can be answered; called after each poll of the store."""
        for number in list(self._asked):
            self._store.want(self._asked[number].ref)
            self._advance(number)

    def take(self) -> list[TextAnswer]:
        """Return the answers since the last call."""
        answers, self._answers = self._answers, []
        return answers

    def payers(self, ref: AdapterRef) -> Iterator[tuple[Flow, int]]:
        """Yield the flows that wait for an adapter, with their weights, the oldest question first."""
        return ((asked.flow, asked.weight) for asked in self._asked.values() if asked.ref == ref)

    def _advance(self, number: int) -> None:
        asked = self._asked[number]
        waited_s = self._clock.monotonic_s() - asked.since_s
        error = self._store.failure(asked.ref)
        words = None if error is not None else self._store.text(asked.ref)
        if error is None and words is None:
            if waited_s < self._max_wait_s:
                return
            error = QueueTimeout(f"the request waited longer than {self._max_wait_s:g} s")
        del self._asked[number]
        self._answers.append(
            TextAnswer(
                number=number,
                words=words or NO_WORDS,
                error=error,
                found_in=asked.found_in,
                waited_ms=1e3 * waited_s,
            )
        )
