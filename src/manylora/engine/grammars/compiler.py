"""The compiler: grammars that requests wait for, compiled beside the steps, and kept within a quota of each flow."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from manylora.clock import Clock
from manylora.engine.events import GrammarStats
from manylora.engine.grammars.compiling import CompiledGrammar, compiled
from manylora.engine.grammars.kept import GrammarQuota, KeptGrammars
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.engine.grammars.spelling import Added, Spelling
from manylora.engine.grammars.trials import Failed, Passed, Trials
from manylora.engine.grammars.turns import Turns
from manylora.engine.grammars.vocabularies import Vocabularies, lower_priority, start_thread
from manylora.engine.request import Request
from manylora.errors import EngineFault, InvalidParameter, ManyloraError, Unavailable
from manylora.ids import Flow
from manylora.models.text.grammar import GrammarKind, GrammarSource
from manylora.models.text.lark import TOKENS

log = logging.getLogger(__name__)

MAX_AT_ONCE = 6
"""Grammars that are compiled at one time."""
MAX_OF_A_FLOW = 3
"""Those of one flow among them, so that places are left to others. A stuck thread counts."""
MAX_COMPILE_S = 45.0
"""A grammar that is not compiled this long after its turn began is refused. Its thread is stuck: nothing ends it."""
MAX_STUCK = 2
"""With so many stuck threads no further grammar is compiled until one of them ends."""
PLAIN_BYTES, PLAIN_BYTES_PER_BYTE = 64 << 10, 512
"""Memory that a plain grammar counts with, and for each byte of its text: no trial measures it."""
LONG_S = 0.02
"""Seconds of processor time beyond which the engine's own compilation has a low priority."""


class GrammarKey(NamedTuple):
    """A grammar over a vocabulary.

    added  the tokens of the request's adapter, if the grammar names one of them; else the vocabulary is the base's
    """

    source: GrammarSource
    added: Added


def grammar_key(request: Request) -> GrammarKey | None:
    """Return the key of a request's grammar; None: it has none.

    A grammar is one of texts, which an adapter's tokens write as well as the base's (`spelling.py`). Only one that
    names a token of the adapter may need a vocabulary with it.
    """
    if (source := request.grammar) is None:
        return None
    added = request.stop.added_tokens
    return GrammarKey(source, added if added and _names_one(source, added) else ())


def _names_one(source: GrammarSource, added: Added) -> bool:
    """Return whether a grammar may name one of these tokens, apart from special tokens by `<[id]>`.

    The base's vocabulary has ids for these.
    """
    if source.kind is not GrammarKind.LARK:
        return False
    named = {token for token in TOKENS.findall(source.text) if token.startswith("<")}
    ids = {number for each in named if each.startswith("<[") for number in re.split(r"[\s,]+", each[2:-2])}
    return any(not number.isdecimal() for number in ids) or any(
        token.content in named or (not token.special and str(token.id) in ids) for token in added
    )


_NO_TOKENS = Spelling()
_QUOTA = GrammarQuota()
Outcome = CompiledGrammar | ManyloraError


StartThread = Callable[[Callable[[], None]], None]
"""Runs a job on a thread of its own."""


@dataclass(slots=True)
class _Job:
    """A compilation of a flow's grammar. Its thread sets `num_bytes`, `took_s` and then `outcome`, once.

    num_bytes  memory of the compiled grammar
    reason     the field of `GrammarStats` that counts a failure
    """

    key: GrammarKey
    flow: Flow
    since_s: float
    num_bytes: int = 0
    took_s: float = 0.0
    reason: str = ""
    outcome: Outcome | None = None


class GrammarCompiler:
    """Compiles grammars side by side, a bounded number of each flow's at a time, and keeps those that flows hold.

    Flows take turns, so that a flow with many or slow grammars waits for itself alone. A grammar is tried in a process
    that can be ended before a thread of this one compiles it.
    The engine polls `want` for each waiting request, as it does for adapters, and calls `unwant` when none waits. A
    failure is kept until then, so that each of its requests ends with it.
    Thread: one calls the methods; jobs run on others
    """

    def __init__(
        self,
        vocabularies: Vocabularies,
        clock: Clock,
        trials: Trials | None = None,
        start_thread: StartThread = start_thread,
        quota: GrammarQuota = _QUOTA,
    ) -> None:
        """`trials` None: grammars are compiled without a trial."""
        self._vocabularies = vocabularies
        self._clock = clock
        self._trials = trials
        self._start_thread = start_thread
        self._wanted: dict[GrammarKey, set[Flow]] = {}
        self._kept: KeptGrammars[GrammarKey, CompiledGrammar] = KeptGrammars(quota, clock)
        self._failed: dict[GrammarKey, ManyloraError] = {}
        self._turns: Turns[GrammarKey] = Turns()
        self._jobs: dict[GrammarKey, _Job] = {}
        self._stuck: list[_Job] = []
        self._unmatched: set[GrammarKey] = set()  # compiled, and not yet used by the request that brought them
        self._totals: Counter[str] = Counter()
        self._compile_s = 0.0

    def want(self, key: GrammarKey, flow: Flow) -> Outcome | None:
        """Return the compiled grammar, the reason why there is none, or None while it is being compiled."""
        flows = self._wanted.setdefault(key, set())
        if flow not in flows:
            flows.add(flow)
            self._kept.begin(key, flow)
        self._collect()
        if (found := self._kept.use(key, flow)) is not None:
            return found
        if key in self._kept:
            return None  # the grammars that the flow uses now fill its quota
        if (error := self._failed.get(key)) is not None:
            return error
        if key not in self._jobs:
            self._turns.add(flow, key)
        self._start_next()
        return self._failed.get(key)

    def unwant(self, key: GrammarKey, flow: Flow) -> None:
        """Note that no request of a flow waits for a grammar.

        If none of another flow waits, its compilation need not begin, and its failure is forgotten.
        """
        self._turns.remove(flow, key)
        flows = self._wanted.get(key, set())
        if flow in flows:
            flows.discard(flow)
            self._kept.end(key, flow)
        if not flows:
            self._wanted.pop(key, None)
            self._failed.pop(key, None)
            self._unmatched.discard(key)

    def matcher(self, key: GrammarKey, flow: Flow, ends: Collection[int], added: Added = ()) -> GrammarMatcher:
        """Return a matcher at the grammar's beginning; `want` has just returned that it is compiled.

        The flow uses the grammar until `release`.
        Args:  ends, added  the tokens that end the sequence, and those of its adapter
        """
        grammar = self._kept[key]
        self._kept.begin(key, flow)
        if key in self._unmatched:
            self._unmatched.discard(key)
        else:
            self._totals["hits"] += 1
        return GrammarMatcher(
            grammar.matcher.deep_copy(),
            grammar.source,
            vocab=grammar.vocabulary.size,
            library_ends=grammar.vocabulary.ends,
            ends=ends,
            spelling=_NO_TOKENS if key.added else self._vocabularies.spelling(added, grammar.vocabulary),
        )

    def release(self, key: GrammarKey, flow: Flow) -> None:
        """Note that a flow's sequence with a matcher has ended."""
        self._kept.end(key, flow)

    def close_flow(self, flow: Flow) -> None:
        """Drop the compiled grammars of a flow whose tenant is closed, those in use at the end of their use."""
        self._kept.close_flow(flow)

    def tend(self) -> None:
        """Drop grammars that no request has used for long."""
        self._kept.trim_old()

    def stats(self) -> GrammarStats:
        """Return the numbers of grammars."""
        return GrammarStats(
            **self._totals,
            queued=len(self._jobs) + len(self._turns),
            compile_s=self._compile_s,
            kept=len(self._kept),
            kept_bytes=self._kept.num_bytes,
            **{f"dropped_{reason}": count for reason, count in self._kept.dropped.items()},
        )

    def held(self, flow: Flow) -> tuple[GrammarKey, ...]:
        """Return the keys of the compiled grammars that a flow holds, the one used longest ago first."""
        return self._kept.held(flow)

    @property
    def is_idle(self) -> bool:
        """Return whether no grammar waits for its compilation."""
        return not self._jobs and not self._turns

    @property
    def is_used(self) -> bool:
        """Return whether a request waits for a grammar or runs with one."""
        return self._kept.has_uses

    @property
    def num_stuck(self) -> int:
        """Return the number of threads that have not ended in time."""
        return len(self._stuck)

    def close(self) -> None:
        """End the process of the trials."""
        if self._trials is not None:
            self._trials.close()

    def _collect(self) -> None:
        """Take the outcomes of the jobs under way, and give up a job that takes too long."""
        self._stuck = [job for job in self._stuck if job.outcome is None]
        for job in list(self._jobs.values()):
            if job.outcome is not None:
                del self._jobs[job.key]
                self._compile_s += job.took_s
                self._keep(job, job.outcome)
            elif self._clock.monotonic_s() - job.since_s > MAX_COMPILE_S:
                del self._jobs[job.key]
                self._stuck.append(job)
                log.warning("grammar.stuck threads=%d bytes=%d", len(self._stuck), len(job.key.source.text))
                job.reason = "slow"
                self._keep(job, job.key.source.refusal(f"it takes longer than {MAX_COMPILE_S:g} s to compile"))
        self._start_next()

    def _start_next(self) -> None:
        while len(self._jobs) < MAX_AT_ONCE:
            held = Counter(job.flow for job in (*self._jobs.values(), *self._stuck))
            busy = {flow for flow, count in held.items() if count >= MAX_OF_A_FLOW}
            busy |= {flow for flow in self._turns.flows if self._kept.is_full(flow, held[flow])}
            if (turn := self._turns.take(busy)) is None:
                return
            flow, key = turn
            for other in self._wanted.get(key, ()):
                self._turns.remove(other, key)
            if len(self._stuck) >= MAX_STUCK:
                self._totals["busy"] += 1
                self._failed[key] = Unavailable(
                    "grammars that take too long to compile hold every thread; repeat later"
                )
                continue
            job = self._jobs[key] = _Job(key, flow, self._clock.monotonic_s())
            self._start_thread(partial(self._run, job))

    def _run(self, job: _Job) -> None:
        """Compile, on a thread of its own."""
        outcome: Outcome
        try:
            outcome = self._tried(job)
        except InvalidParameter as error:
            job.reason, outcome = job.reason or "invalid", error
        except ManyloraError as error:
            job.reason, outcome = "busy", error
        except ImportError:
            job.reason = "invalid"
            outcome = job.key.source.refusal("this server lacks llguidance, which compiles grammars")
        except BaseException as error:  # a panic of the library is no `Exception`
            log.exception("grammar.failed kind=%s bytes=%d", job.key.source.kind, len(job.key.source.text))
            job.reason, outcome = "fault", EngineFault(f"the grammar could not be compiled: {error}")
        job.took_s = self._clock.monotonic_s() - job.since_s
        job.outcome = outcome

    def _tried(self, job: _Job) -> CompiledGrammar:
        """Return the grammar of a job, once it has passed a trial. Raises as `compiled`, and `Unavailable`."""
        source = job.key.source
        num_bytes = PLAIN_BYTES + PLAIN_BYTES_PER_BYTE * len(source.text)
        vocabulary = self._vocabularies.of(job.key.added)
        if self._trials is not None and not source.is_plain:
            match self._trials.verdict(source):
                case Failed.LIMITS:
                    job.reason = "slow"
                    raise source.refusal("it takes more time or memory to compile than a grammar may")
                case Failed.AWAY:
                    raise Unavailable("the server could not try the grammar; repeat later")
                case Passed() as passed:
                    num_bytes = passed.num_bytes
                    if passed.cpu_s > LONG_S:
                        lower_priority()
        job.num_bytes = num_bytes + len(source.text)
        return compiled(source, vocabulary)

    def _keep(self, job: _Job, outcome: Outcome) -> None:
        key = job.key
        if isinstance(outcome, ManyloraError):
            self._totals[job.reason] += 1
            if key in self._wanted:
                self._failed[key] = outcome
            return
        self._totals["compiled"] += 1
        if key in self._wanted:
            self._unmatched.add(key)
        others = [flow for flow in self._wanted.get(key, ()) if flow != job.flow and not self._kept.is_full(flow)]
        self._kept.add(key, outcome, job.num_bytes, (job.flow, *others))
