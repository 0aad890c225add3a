"""The compiler: beside the steps, within limits, and kept for the next request."""

import sys
from collections.abc import Callable

import pytest

from manylora.clock import ManualClock
from manylora.engine.events import GrammarStats
from manylora.engine.grammars import compiler as compilers
from manylora.engine.grammars.compiler import (
    MAX_AT_ONCE,
    MAX_COMPILE_S,
    MAX_OF_A_FLOW,
    MAX_STUCK,
    PLAIN_BYTES,
    PLAIN_BYTES_PER_BYTE,
    GrammarCompiler,
    GrammarKey,
)
from manylora.engine.grammars.compiling import CompiledGrammar, compiled
from manylora.engine.grammars.kept import GrammarQuota
from manylora.engine.grammars.trials import Failed, Passed, Trials, Verdict
from manylora.engine.grammars.vocabularies import Vocabularies
from manylora.errors import EngineFault, InvalidParameter, ManyloraError, Unavailable
from manylora.ids import Flow
from manylora.models.text.grammar import GrammarSource, json_grammar, lark_grammar, regex_grammar
from tests.engine.grammars.vocabulary import open_bytes, texts_of, tokens_of

Job = Callable[[], None]
QUOTA = GrammarQuota()


class Threads:
    """Threads whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def start(self, job: Job) -> None:
        self.jobs.append(job)

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


class Told:
    """Trials that say what the test wants."""

    def __init__(self, verdict: Verdict) -> None:
        self.told = verdict
        self.is_closed = False

    def verdict(self, source: GrammarSource) -> Verdict:
        return self.told

    def close(self) -> None:
        self.is_closed = True


class Bench:
    def __init__(self, trials: Trials | None = None, quota: GrammarQuota = QUOTA) -> None:
        self.threads, self.clock = Threads(), ManualClock()
        vocabularies = Vocabularies(open_bytes, texts_of)
        self.compiler = GrammarCompiler(vocabularies, self.clock, trials, self.threads.start, quota=quota)

    def want(self, pattern: str, flow: str = "a") -> CompiledGrammar | ManyloraError | None:
        return self.compiler.want(key(pattern), Flow(flow))

    def unwant(self, pattern: str, flow: str = "a") -> None:
        self.compiler.unwant(key(pattern), Flow(flow))


def key(pattern: str) -> GrammarKey:
    return GrammarKey(regex_grammar(pattern), ())


def test_a_grammar_is_compiled_on_a_thread_once_for_all_who_want_it() -> None:
    bench = Bench()
    assert bench.want("a") is None
    assert bench.want("a") is None
    assert bench.want("a", "b") is None
    assert len(bench.threads.jobs) == 1
    bench.threads.run()
    found = bench.want("a")
    assert isinstance(found, CompiledGrammar)
    assert bench.want("a", "b") is found
    assert bench.compiler.is_idle
    one, other = bench.compiler.matcher(key("a"), Flow("a"), (2,)), bench.compiler.matcher(key("a"), Flow("a"), (2,))
    one.advance(tokens_of("a")[0])
    assert (one.is_over, other.is_over) == (True, False)


def test_the_grammars_of_a_flow_are_compiled_in_their_order() -> None:
    bench = Bench()
    for pattern in "abcde":
        assert bench.want(pattern) is None
    assert len(bench.threads.jobs) == MAX_OF_A_FLOW == 3
    bench.unwant("d")
    bench.threads.run()
    assert isinstance(bench.want("a"), CompiledGrammar)
    assert len(bench.threads.jobs) == 1
    bench.threads.run()
    assert isinstance(bench.want("e"), CompiledGrammar)
    assert bench.want("d") is None


def test_a_flow_with_many_grammars_delays_no_other() -> None:
    bench = Bench()
    for number in range(20):
        assert bench.want(f"a{number}") is None
    for other in "bcd":
        assert bench.want(other, other) is None
    assert len(bench.threads.jobs) == MAX_AT_ONCE == 6
    assert bench.want("e", "e") is None
    assert len(bench.threads.jobs) == MAX_AT_ONCE
    bench.threads.run()  # those under way; the others begin at the next look
    assert bench.want("e", "e") is None
    assert len(bench.threads.jobs) == MAX_OF_A_FLOW + 1, "three more of the first flow, and the last flow's"
    bench.threads.run()
    assert isinstance(bench.want("e", "e"), CompiledGrammar)


def test_slow_grammars_hold_up_their_own_flow_alone() -> None:
    bench = Bench()
    for number in range(MAX_OF_A_FLOW):
        bench.want(f"slow{number}")
    slow, bench.threads.jobs = bench.threads.jobs, []
    bench.want("own")
    bench.want("other", "b")
    assert len(bench.threads.jobs) == 1
    bench.threads.run()
    assert isinstance(bench.want("other", "b"), CompiledGrammar)
    assert bench.want("own") is None
    assert bench.threads.jobs == []
    slow[0]()
    assert bench.want("own") is None
    bench.threads.run()
    assert isinstance(bench.want("own"), CompiledGrammar)


def test_a_refusal_reaches_all_who_wait_and_is_then_forgotten() -> None:
    bench = Bench()
    for flow in "ab":
        bench.want("(", flow)
    bench.threads.run()
    for flow in "aabb":
        error = bench.want("(", flow)
        assert isinstance(error, InvalidParameter)
        assert "unclosed group" in error.message
    bench.unwant("(")
    assert isinstance(bench.want("(", "b"), InvalidParameter)
    bench.unwant("(", "b")
    assert bench.want("(") is None
    bench.unwant("(")


def test_a_compilation_that_takes_too_long_is_refused_and_its_thread_counts_as_stuck() -> None:
    bench = Bench()
    for number in range(MAX_STUCK):
        assert bench.want(f"a{number}", f"flow {number}") is None
        bench.clock.advance(MAX_COMPILE_S + 0.1)
        error = bench.want(f"a{number}", f"flow {number}")
        assert isinstance(error, InvalidParameter)
        assert "takes longer than 45 s" in error.message
        assert bench.compiler.num_stuck == number + 1
    assert isinstance(bench.want("b"), Unavailable)
    bench.unwant("b")
    bench.threads.run()
    assert bench.want("b") is None
    assert bench.compiler.num_stuck == 0
    bench.threads.run()
    assert isinstance(bench.want("b"), CompiledGrammar)
    stats = bench.compiler.stats()
    assert (stats.slow, stats.busy, stats.compiled) == (MAX_STUCK, 1, 1)


@pytest.mark.parametrize(
    ("told", "expected", "reason"), [(Failed.LIMITS, InvalidParameter, "slow"), (Failed.AWAY, Unavailable, "busy")]
)
def test_a_grammar_that_does_not_pass_its_trial_is_not_compiled(
    told: Failed, expected: type[ManyloraError], reason: str
) -> None:
    bench = Bench(Told(told))
    bench.want("a")
    bench.threads.run()
    assert isinstance(bench.want("a"), expected)
    assert getattr(bench.compiler.stats(), reason) == 1


def test_compiled_grammars_are_kept_within_their_memory() -> None:
    trials = Told(Passed(GrammarQuota().num_bytes // 2 - 9, 0.0))
    bench = Bench(trials)
    for pattern in "abc":
        bench.want(pattern)
        bench.threads.run()
        assert isinstance(bench.want(pattern), CompiledGrammar)
        bench.unwant(pattern)
    assert isinstance(bench.want("c"), CompiledGrammar)
    assert isinstance(bench.want("b"), CompiledGrammar)
    assert bench.want("a") is None
    bench.compiler.close()
    assert trials.is_closed


def test_the_numbers_tell_what_became_of_grammars() -> None:
    bench = Bench()
    for pattern in ("a", "("):
        bench.want(pattern)
    assert bench.compiler.stats() == GrammarStats(queued=2)
    bench.threads.run()
    bench.want("a")
    for _ in range(3):
        bench.compiler.matcher(key("a"), Flow("a"), (2,))
    bench.threads.run()
    bench.want("(")
    kept = PLAIN_BYTES + PLAIN_BYTES_PER_BYTE + 1
    assert bench.compiler.stats() == GrammarStats(compiled=1, hits=2, invalid=1, kept=1, kept_bytes=kept)


def test_what_is_kept_is_bounded_and_what_is_wanted_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manylora.engine.grammars.kept.MAX_KEPT", 3)
    bench = Bench()
    for pattern in "abcde":
        bench.want(pattern)
        bench.threads.run()
        assert isinstance(bench.want(pattern), CompiledGrammar)
        if pattern != "a":
            bench.unwant(pattern)
    assert isinstance(bench.want("a"), CompiledGrammar)
    assert isinstance(bench.want("e"), CompiledGrammar)
    assert bench.want("b") is None


def test_a_flow_whose_rows_fill_its_quota_waits_with_a_further_grammar() -> None:
    bench = Bench(quota=GrammarQuota(count=2))
    for pattern in "ab":
        assert bench.want(pattern) is None
        bench.threads.run()
        assert isinstance(bench.want(pattern), CompiledGrammar)
        bench.compiler.matcher(key(pattern), Flow("a"), (2,))
        bench.unwant(pattern)  # its row runs
    assert bench.want("c") is None
    assert bench.want("c", "b") is None
    bench.threads.run()
    assert isinstance(bench.want("c", "b"), CompiledGrammar), "another flow gets its own"
    assert bench.want("c") is None, "a compiled one counts for each flow that holds it"
    assert bench.want("d") is None
    assert bench.threads.jobs == []
    bench.compiler.release(key("a"), Flow("a"))
    assert isinstance(bench.want("c"), CompiledGrammar)
    assert bench.compiler.held(Flow("a")) == (key("b"), key("c"))


def test_a_closed_flow_keeps_no_grammar_beyond_its_requests() -> None:
    bench = Bench()
    assert [bench.want(pattern) for pattern in "abc"] == [None] * 3
    bench.unwant("b")  # its request has left, its compilation goes on
    bench.compiler.close_flow(Flow("a"))
    bench.threads.run()
    assert isinstance(bench.want("a"), CompiledGrammar), "its request goes on"
    bench.compiler.matcher(key("a"), Flow("a"), (2,))
    for pattern in "ac":
        bench.unwant(pattern)
    assert bench.compiler.held(Flow("a")) == (key("a"),)
    bench.compiler.release(key("a"), Flow("a"))
    stats = bench.compiler.stats()
    assert (stats.kept, stats.kept_bytes, stats.dropped_closed) == (0, 0, 3)
    assert not bench.compiler.is_used


@pytest.mark.parametrize("kind", [RuntimeError, BaseException], ids=["error", "panic"])
def test_a_failure_that_no_grammar_explains_is_the_server_s(
    monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """A panic of the library is no `Exception`. Neither leaves a thread that counts as stuck."""

    def fails(source: GrammarSource, vocabulary: object) -> CompiledGrammar:
        raise kind("broken")

    bench = Bench()
    with monkeypatch.context() as patch:
        patch.setattr(compilers, "compiled", fails)
        bench.want("a")
        bench.threads.run()
        assert isinstance(bench.want("a"), EngineFault)
    bench.unwant("a")
    bench.clock.advance(MAX_COMPILE_S + 1)
    bench.want("a")
    bench.threads.run()
    assert isinstance(bench.want("a"), CompiledGrammar)
    assert bench.compiler.num_stuck == 0


def test_without_the_library_a_grammar_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    bench = Bench()
    Vocabularies(open_bytes, texts_of).prepare()
    bench.want("a")
    bench.threads.run()
    error = bench.want("a")
    assert isinstance(error, InvalidParameter)
    assert "llguidance" in error.message


REFUSED = [
    (json_grammar({"type": "string", "format": "idn-email"}), "Unknown format"),
    (json_grammar({"type": "string", "pattern": "(?=a)b"}), "look-around"),
    (json_grammar({"type": "string", "enum": [1]}), "Unsatisfiable"),
    (json_grammar({"$ref": "#"}), "is not supported: ."),
    (json_grammar({"$ref": "https://example.com/schema"}), "not present"),
    (json_grammar({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
    (json_grammar({"type": "array", "items": False, "minItems": 1}), "is not supported: ."),
    (lark_grammar('start: "a" ('), "Expected token"),
    (lark_grammar("start: start"), "is not supported: ."),
    (lark_grammar("root ::= missing"), "is not supported: ."),
    (lark_grammar("root ::= ["), "is not supported: ."),
]


@pytest.mark.parametrize(("source", "why"), REFUSED, ids=[source.text[:40] for source, _ in REFUSED])
def test_a_grammar_that_cannot_be_compiled_is_refused_with_the_reason(source: GrammarSource, why: str) -> None:
    with pytest.raises(InvalidParameter, match=why) as refused:
        compiled(source, open_bytes())
    assert len(refused.value.message) < 500
    assert "\n" not in refused.value.message
