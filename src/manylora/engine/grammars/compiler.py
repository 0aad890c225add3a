"""The compiler: grammars that requests wait for, compiled beside the steps, and the last ones kept."""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from manylora.clock import Clock
from manylora.engine.grammars.compiling import Added, CompiledGrammar, compiled
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.grammars.vocabularies import Vocabularies, start_thread
from manylora.engine.request import Request
from manylora.errors import EngineFault, ManyloraError, Unavailable
from manylora.models.text.grammar import GrammarKind, GrammarSource

log = logging.getLogger(__name__)

MAX_KEPT = 512
"""Compiled grammars that are kept without a request."""
MAX_KEPT_BYTES = 8 << 20
"""Limit on the texts of these. A compiled grammar takes more, in proportion."""
MAX_COMPILE_S = 3.0
"""A grammar that is not compiled after this long is refused. The thread cannot be stopped and counts as stuck."""
MAX_STUCK = 2
"""With so many stuck threads no further grammar is compiled until one of them ends."""


class GrammarKey(NamedTuple):
    """A grammar over a vocabulary.

    added  the tokens of the request's adapter, if one of them may stand in a text
    """

    source: GrammarSource
    added: Added


def grammar_key(request: Request) -> GrammarKey | None:
    """Return the key of a request's grammar; None: it has none.

    Special tokens are no part of a text, so that adapters which add these alone share the base's vocabulary, but for
    grammars that name tokens by their ids.
    """
    if request.grammar is None:
        return None
    added = request.stop.added_tokens
    names_tokens = request.grammar.kind is GrammarKind.LARK and "<[" in request.grammar.text
    is_base = not names_tokens and all(token.special for token in added)
    return GrammarKey(request.grammar, () if is_base else added)


Outcome = CompiledGrammar | ManyloraError


StartThread = Callable[[Callable[[], None]], None]
"""Runs a job on a thread of its own."""


@dataclass(slots=True)
class _Job:
    """A compilation. `outcome` is set by its thread, once."""

    key: GrammarKey
    since_s: float
    outcome: Outcome | None = None


class GrammarCompiler:
    """Compiles one grammar at a time, in order of arrival, and keeps the last used ones.

    The engine polls `want` for each waiting request, as it does for adapters, and calls `unwant` when none waits. A
    failure is kept until then, so that each of its requests ends with it.
    Thread: one calls the methods; jobs run on others
    """

    def __init__(self, vocabularies: Vocabularies, clock: Clock, start_thread: StartThread = start_thread) -> None:
        self._vocabularies = vocabularies
        self._clock = clock
        self._start_thread = start_thread
        self._wanted: set[GrammarKey] = set()
        self._compiled: OrderedDict[GrammarKey, CompiledGrammar] = OrderedDict()
        self._bytes = 0
        self._failed: dict[GrammarKey, ManyloraError] = {}
        self._queue: deque[GrammarKey] = deque()
        self._job: _Job | None = None
        self._stuck: list[_Job] = []

    def want(self, key: GrammarKey) -> Outcome | None:
        """Return the compiled grammar, the reason why there is none, or None while it is being compiled."""
        self._wanted.add(key)
        self._collect()
        if (found := self._compiled.get(key)) is not None:
            self._compiled.move_to_end(key)
            return found
        if (error := self._failed.get(key)) is not None:
            return error
        if (self._job is None or self._job.key != key) and key not in self._queue:
            self._queue.append(key)
        self._start_next()
        return self._failed.get(key)

    def unwant(self, key: GrammarKey) -> None:
        """Note that no request waits for a grammar: its compilation need not begin, and its failure is forgotten."""
        self._wanted.discard(key)
        self._failed.pop(key, None)
        if key in self._queue:
            self._queue.remove(key)

    def matcher(self, key: GrammarKey, ends: Collection[int]) -> GrammarMatcher:
        """Return a matcher at the grammar's beginning; `want` has just returned that it is compiled."""
        grammar = self._compiled[key]
        return GrammarMatcher(
            grammar.matcher.deep_copy(),
            grammar.source,
            vocab=grammar.vocabulary.size,
            library_ends=grammar.vocabulary.ends,
            ends=ends,
        )

    @property
    def is_idle(self) -> bool:
        """Return whether no grammar waits for its compilation."""
        return self._job is None and not self._queue

    @property
    def num_stuck(self) -> int:
        """Return the number of threads that have not ended in time."""
        return len(self._stuck)

    def _collect(self) -> None:
        """Take the outcome of the job under way, or give the job up if it takes too long."""
        self._stuck = [job for job in self._stuck if job.outcome is None]
        job = self._job
        if job is None:
            return
        if job.outcome is not None:
            self._job = None
            self._keep(job.key, job.outcome)
        elif self._clock.monotonic_s() - job.since_s > MAX_COMPILE_S:
            self._job = None
            self._stuck.append(job)
            log.warning("grammar.stuck threads=%d bytes=%d", len(self._stuck), len(job.key.source.text))
            self._keep(job.key, job.key.source.refusal(f"it takes longer than {MAX_COMPILE_S:g} s to compile"))
        self._start_next()

    def _start_next(self) -> None:
        while self._job is None and self._queue:
            key = self._queue.popleft()
            if len(self._stuck) >= MAX_STUCK:
                self._failed[key] = Unavailable(
                    "grammars that take too long to compile hold every thread; repeat later"
                )
                continue
            job = self._job = _Job(key, self._clock.monotonic_s())
            self._start_thread(partial(self._run, job))

    def _run(self, job: _Job) -> None:
        """Compile, on a thread of its own."""
        try:
            job.outcome = compiled(job.key.source, self._vocabularies.of(job.key.added))
        except ManyloraError as error:
            job.outcome = error
        except ImportError:
            job.outcome = job.key.source.refusal("this server lacks llguidance, which compiles grammars")
        except Exception as error:
            log.exception("grammar.failed kind=%s bytes=%d", job.key.source.kind, len(job.key.source.text))
            job.outcome = EngineFault(f"the grammar could not be compiled: {error}")

    def _keep(self, key: GrammarKey, outcome: Outcome) -> None:
        if isinstance(outcome, ManyloraError):
            if key in self._wanted:
                self._failed[key] = outcome
            return
        self._compiled[key] = outcome
        self._bytes += len(key.source.text)
        for oldest in list(self._compiled):
            if len(self._compiled) <= MAX_KEPT and self._bytes <= MAX_KEPT_BYTES:
                break
            if oldest not in self._wanted:
                del self._compiled[oldest]
                self._bytes -= len(oldest.source.text)
