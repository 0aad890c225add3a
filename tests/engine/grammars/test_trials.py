"""Trials in their process: what ends within the limits passes, and nothing else holds the process up."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from manylora.engine.grammars.trial_process import WALL_S
from manylora.engine.grammars.trials import WAIT_S, Failed, Passed, ProcessTrials, VocabularyText
from manylora.models.text.grammar import GrammarSource, json_grammar, regex_grammar
from tests.engine.grammars.vocabulary import END, VOCAB, byte_tokenizer
from tests.support.waiting import PATIENCE_S

ENDLESS = json_grammar(
    {"allOf": [{"type": "string", "pattern": f"(a|b)*{'ab'[bit % 2]}(a|b){{{bit}}}$"} for bit in range(24)]}
)
"""The intersection of expressions, which has exponentially many states."""


@pytest.fixture(scope="module")
def trials() -> Iterator[ProcessTrials]:
    trials = ProcessTrials(lambda: VocabularyText(byte_tokenizer().to_str(), VOCAB, (END,)))
    yield trials
    trials.close()
    assert trials.verdict(regex_grammar("a")) is Failed.AWAY


@pytest.mark.parametrize("source", [regex_grammar("[0-9]+"), regex_grammar("("), json_grammar({"$ref": "#"})])
def test_a_grammar_that_ends_passes_well_or_badly(trials: ProcessTrials, source: GrammarSource) -> None:
    verdict = trials.verdict(source)
    assert isinstance(verdict, Passed)
    assert verdict.num_bytes < 64 << 20
    assert verdict.cpu_s < 1


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
        return VocabularyText(byte_tokenizer().to_str(), VOCAB, (END,))

    trials = ProcessTrials(text)
    with pytest.raises(ValueError, match="no text"):
        trials.verdict(regex_grammar("a"))
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    trials.close()


def test_a_process_that_has_ended_starts_again(trials: ProcessTrials) -> None:
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
    (process,) = [
        each for each in psutil.Process().children() if "manylora.engine.grammars.trial_process" in each.cmdline()
    ]
    process.kill()
    process.wait(PATIENCE_S)
    assert isinstance(trials.verdict(regex_grammar("a")), Passed)
