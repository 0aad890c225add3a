"""A grammar that fails or hangs where it works: its request alone ends, with an error, and others keep their tokens."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manylora import LLM, SamplingParams
from manylora.bench.faults.tiny_base import write_tiny_base
from manylora.config.declaration import Setting
from manylora.engine.grammars import compiler as compilers
from manylora.engine.grammars.compiler import GrammarCompiler, GrammarKey
from manylora.engine.grammars.compiling import compiled
from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.errors import EngineFault
from manylora.models.text.grammar import regex_grammar
from tests.engine.grammars.test_masks import Library, Panic

SAMPLED = SamplingParams(temperature=1.0)
BAD = regex_grammar("bad[xyz]{12}", field="guided_regex")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    base = write_tiny_base(tmp_path_factory.mktemp("failing") / "tiny")
    settings: dict[str, Setting] = {"model.kernels": "native", "model.threads": 1, "engine.kv_bytes": 1 << 21}
    with LLM(base, settings=settings) as llm:
        yield llm


def break_bad(monkeypatch: pytest.MonkeyPatch, method: str, own: Callable[..., object]) -> None:
    """Put another function in place of a method of the library's matchers of the bad grammar."""
    matcher_of = GrammarCompiler.matcher

    def broken(self: GrammarCompiler, key: GrammarKey, *rest: Any) -> GrammarMatcher:
        found = matcher_of(self, key, *rest)
        if key.source == BAD:
            found._matcher = Library(found._matcher, method, own)  # type: ignore[assignment]  # as the library's
        return found

    monkeypatch.setattr(GrammarCompiler, "matcher", broken)


def assert_alone(llm: LLM, why: str) -> None:
    """The bad request ends with a reason beside another, whose tokens stay; later ones are served."""

    def other() -> list[int]:
        return llm.generate("x", grammar=regex_grammar("[abc]{24}"), sampling=SAMPLED, seed=3, max_tokens=30).token_ids

    alone = other()
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            beside = pool.submit(other)
            with pytest.raises(EngineFault, match=why):
                llm.generate("x", grammar=BAD, sampling=SAMPLED, seed=5, max_tokens=20)
            assert beside.result() == alone
    assert llm.generate("x", grammar=regex_grammar("ok")).text == "ok"


@pytest.mark.parametrize("method", ["unsafe_compute_mask_ptr", "consume_token", "is_stopped", "compute_ff_tokens"])
def test_a_matcher_that_fails_ends_its_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def fails(*_: object) -> None:
        raise Panic("at the wrong place")

    break_bad(monkeypatch, method, fails)
    assert_alone(llm, "the grammar of `guided_regex` failed: at the wrong place")


def test_a_mask_that_does_not_come_ends_its_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, ends = threading.Event(), threading.Event()

    def hangs(*_: object) -> None:
        reached.set()
        ends.wait(60)

    def wait(event: threading.Event) -> bool:
        while not event.wait(0.01):
            if reached.is_set():
                reached.clear()
                return False
        return True

    monkeypatch.setattr("manylora.engine.grammars.masks.wait_for", wait)
    break_bad(monkeypatch, "unsafe_compute_mask_ptr", hangs)
    try:
        assert_alone(llm, "takes too long to say which tokens may come next")
    finally:
        ends.set()


def test_a_compilation_that_fails_ends_its_request_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: Any, vocabulary: Any) -> Any:
        if source == BAD:
            raise Panic("at the wrong place")
        return compiled(source, vocabulary)

    monkeypatch.setattr(compilers, "compiled", fails)
    monkeypatch.setattr("manylora.engine.grammars.kept.MAX_KEPT", 0)  # none is kept from the tests before
    llm.generate("x", grammar=regex_grammar("a"), max_tokens=2)
    assert_alone(llm, "could not be compiled: at the wrong place")
