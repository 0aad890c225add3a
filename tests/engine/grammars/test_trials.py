"""Trials in their process: what ends within the limits passes, and nothing else holds the process up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from manylora.engine.grammars.trial_process import WALL_S
from manylora.engine.grammars.trials import WAIT_S, Failed, Passed, ProcessTrials, VocabularyText
from manylora.models.text.grammar import GrammarSource, json_grammar, regex_grammar
from tests.conftest import long
from tests.engine.grammars.vocabulary import END, VOCAB, byte_tokenizer
from tests.support.waiting import PATIENCE_S, has_word

ENDLESS = json_grammar(
    {"allOf": [{"type": "string", "pattern": f"(a|b)*{'ab'[bit % 2]}(a|b){{{bit}}}$"} for bit in range(24)]}
)
"""The intersection of expressions, which has exponentially many states."""


@pytest.fixture(scope="module")
def trials() -> Iterator[ProcessTrials]:
    trials = ProcessTrials(lambda: VocabularyText.of(byte_tokenizer().to_str(), VOCAB, (END,)))
    yield trials
    trials.close()
    assert trials.verdict(regex_grammar("a")) is Failed.AWAY


@pytest.mark.parametrize("source", [regex_grammar("[0-9]+"), regex_grammar("("), json_grammar({"$ref": "#"})])
def test_a_grammar_that_ends_passes_well_or_badly(trials: ProcessTrials, source: GrammarSource) -> None:
    verdict = trials.verdict(source)
    assert isinstance(verdict, Passed)
    assert verdict.num_bytes < 64 << 20
    assert verdict.cpu_s < 1


@pytest.mark.long
def test_one_without_end_is_ended_beside_others(trials: ProcessTrials) -> None:
    with ThreadPoolExecutor(2) as pool:
        endless = pool.submit(trials.verdict, ENDLESS)
        assert isinstance(trials.verdict(regex_grammar("ab?")), Passed)
        assert endless.result() is Failed.LIMITS
    assert isinstance(trials.verdict(regex_grammar("ab?c")), Passed)


def test_a_trial_without_a_processor_is_no_limit_exceeded() -> None:
    """The engine stops waiting before the child ends for its age, which it would take for a limit."""
    assert WAIT_S < WALL_S


def test_a_vocabulary_that_cannot_be_told_leaves_no_process() -> None:
    texts = iter([ValueError("no text"), None])

    def text() -> VocabularyText:
        if (error := next(texts)) is not None:
            raise error
        return VocabularyText.of(byte_tokenizer().to_str(), VOCAB, (END,))

    trials = ProcessTrials(text)
    with pytest.raises(ValueError, match="no text"):
        trials.verdict(regex_grammar("a"))
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    trials.close()


def process_of_trials() -> psutil.Process:
    module = "manylora.engine.grammars.trial_process"
    (process,) = [each for each in psutil.Process().children() if has_word(each, module)]
    return process


def test_a_process_that_has_ended_starts_again(trials: ProcessTrials) -> None:
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    process = process_of_trials()
    process.kill()
    process.wait(PATIENCE_S)
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)


def test_a_process_that_is_stuck_is_ended_and_starts_again(
    trials: ProcessTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    process = process_of_trials()
    process.suspend()
    with monkeypatch.context() as patch:
        patch.setattr("manylora.engine.grammars.trials.WAIT_S", 0.05)
        assert trials.verdict(regex_grammar("a")) is Failed.AWAY
    assert not process.is_running()
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)


@pytest.mark.parametrize("is_child", [True, *long(False)], ids=["the trial", "the process"])
def test_one_that_is_killed_during_a_trial_is_over_for_it_alone(trials: ProcessTrials, is_child: bool) -> None:
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    process = process_of_trials()
    with ThreadPoolExecutor(1) as pool:
        endless = pool.submit(trials.verdict, ENDLESS)
        while not (children := process.children()) and not endless.done():
            pass
        for each in children if is_child else [process]:
            each.kill()
        assert isinstance(endless.result(), Failed)
    assert isinstance(trials.verdict(regex_grammar("ab?")), Passed)
    assert process_of_trials().is_running()
