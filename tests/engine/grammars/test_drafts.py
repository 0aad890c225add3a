"""Draft tokens of sequences with a grammar: none that it forbids, and those that it leaves no choice about."""

import pytest

from manylora.engine.prompt_lookup import DraftLength
from manylora.engine.request import Request, SamplingParams, StopParams
from manylora.engine.scheduling.sequence import MAX_FORCED, Sequence
from manylora.engine.stopping import StopChecker
from manylora.ids import Flow, RequestId
from manylora.models.text.grammar import regex_grammar
from tests.engine.grammars.vocabulary import END, matcher_of, tokens_of


def sequence_of(prompt: str, pattern: str, *, budget: int = 40, speculation: bool = True) -> Sequence:
    """A sequence behind its prompt, whose reply matches a regular expression."""
    stop = StopParams(max_new_tokens=budget)
    request = Request(
        id=RequestId("r"),
        flow=Flow("a"),
        salt="",
        tokens=tuple(tokens_of(prompt)),
        adapter=None,
        sampling=SamplingParams(),
        stop=stop,
        speculation=speculation,
    )
    stopper = StopChecker(stop, [END], lambda skips: pytest.fail("no stop string, no text"))
    sequence = Sequence(request, stopper, None, 0.0)
    sequence.matcher = matcher_of(regex_grammar(pattern))
    return sequence


def test_a_text_without_a_choice_is_drafted() -> None:
    sequence = sequence_of("hello", "name=[0-9]")
    assert sequence.draft_tokens(20) == tuple(tokens_of("name="))
    assert sequence.draft_tokens(2) == tuple(tokens_of("na"))
    assert sequence_of("hello", "a{30}").draft_tokens(20) == tuple(tokens_of("a" * MAX_FORCED))
    assert sequence_of("hello", "name=[0-9]", budget=3).draft_tokens(20) == tuple(tokens_of("na"))


def test_a_draft_from_the_prompt_ends_before_a_forbidden_token() -> None:
    sequence = sequence_of("cabx cab", "[abx]+")
    assert sequence.prompt_lookup is not None
    for _ in range(4):
        sequence.prompt_lookup.note(1, 1)
    assert sequence.draft_tokens(3) == tuple(tokens_of("x"))
    other = sequence_of("cab! cab", "[abx]+")
    assert other.draft_tokens(3) == ()


def test_a_request_without_speculation_has_no_drafts() -> None:
    assert sequence_of("hello", "name=[0-9]", speculation=False).draft_tokens(20) == ()


def test_rejected_texts_are_drafted_less_often() -> None:
    sequence = sequence_of("hello", "name=[0-9]")
    assert sequence.draft_tokens(8)
    sequence.note_draft(5, 0)
    assert [len(sequence.draft_tokens(8)) for _ in range(3)] == [0, 1, 1]
    sequence.note_draft(1, 1)
    assert len(sequence.draft_tokens(8)) == 2


def test_a_length_grows_with_accepted_drafts() -> None:
    length = DraftLength()
    assert length.take() == 1
    length.note(1, 1)
    assert length.take() == 2
    length.note(2, 2)
    length.note(4, 3)
    assert length.take() == 3
