"""A matcher: its masks, its end, and the end tokens of a request."""

import numpy as np
import pytest

from manylora.engine.grammars.matcher import GrammarMatcher
from manylora.errors import InvalidParameter
from manylora.models.text.grammar import json_grammar, regex_grammar
from tests.engine.grammars.vocabulary import END, VOCAB, matcher_of, tokens_of


def next_tokens(matcher: GrammarMatcher, draft: tuple[int, ...] = ()) -> list[set[int]]:
    """The tokens that may come next, and after each draft token; the words hold noise before."""
    masks = np.full((len(draft) + 3, matcher.words + 1), 0xDEADBEEF, dtype=np.uint32)
    matcher.fill(masks, 1, draft)
    assert (masks[0] == 0xDEADBEEF).all()
    assert (masks[-1] == 0xDEADBEEF).all()
    bits = np.unpackbits(masks[1:-1].view(np.uint8), axis=1, bitorder="little")
    return [set(np.flatnonzero(row).tolist()) for row in bits]


def advance(matcher: GrammarMatcher, text: str) -> None:
    for token in tokens_of(text):
        matcher.advance(token)


def test_a_mask_has_the_tokens_that_may_come_next() -> None:
    matcher = matcher_of(regex_grammar("a[xyz]|b"))
    assert next_tokens(matcher) == [set(tokens_of("ab"))]
    advance(matcher, "a")
    assert next_tokens(matcher) == [set(tokens_of("xyz"))]


def test_masks_after_draft_tokens_leave_the_matcher_where_it_is() -> None:
    matcher = matcher_of(regex_grammar("a[xyz]c+"))
    draft = tuple(tokens_of("ax"))
    assert next_tokens(matcher, draft) == [set(tokens_of("a")), set(tokens_of("xyz")), set(tokens_of("c"))]
    assert next_tokens(matcher) == [set(tokens_of("a"))]


def test_nothing_may_come_after_a_draft_token_that_may_not() -> None:
    matcher = matcher_of(regex_grammar("a[xyz]c+"))
    assert next_tokens(matcher, tuple(tokens_of("aqc"))) == [set(tokens_of("a")), set(tokens_of("xyz")), set(), set()]
    assert next_tokens(matcher) == [set(tokens_of("a"))]


def test_nothing_may_come_after_a_draft_that_ends() -> None:
    matcher = matcher_of(regex_grammar("a[xyz]?"))
    draft = (*tokens_of("a"), END, *tokens_of("x"))
    assert next_tokens(matcher, draft) == [set(tokens_of("a")), {*tokens_of("xyz"), END}, set(), set()]


@pytest.mark.parametrize("ends", [(), (5, 7), (VOCAB + 100,), (END, 9)])
def test_the_end_tokens_of_the_request_may_come_where_the_grammar_may_end(ends: tuple[int, ...]) -> None:
    matcher = matcher_of(regex_grammar("[0-9]+"), ends)
    digits = set(tokens_of("0123456789"))
    assert next_tokens(matcher) == [digits]
    advance(matcher, "1")
    assert next_tokens(matcher) == [digits | set(ends)]
    assert next_tokens(matcher, tuple(tokens_of("23")))[-1] == digits | set(ends)


def test_a_grammar_is_over_once_nothing_may_follow() -> None:
    matcher = matcher_of(json_grammar({"type": "object", "properties": {}, "additionalProperties": False}))
    assert not matcher.is_over
    advance(matcher, "{")
    assert not matcher.is_over
    advance(matcher, "}")
    assert matcher.is_over


def test_a_token_that_may_not_come_ends_the_sequence_with_an_error() -> None:
    matcher = matcher_of(regex_grammar("a", field="guided_regex"))
    advance(matcher, "b")
    assert not matcher.is_over
    assert next_tokens(matcher, tuple(tokens_of("a"))) == [set(), set()]
    error = matcher.no_token_left()
    assert isinstance(error, InvalidParameter)
    assert error.parameter == "guided_regex"
    assert "\n" not in error.message


def test_drafts_are_valid_as_far_as_they_may_come() -> None:
    matcher = matcher_of(regex_grammar("abc[0-9]"))
    assert matcher.num_valid(tokens_of("abcd")) == 3
    assert matcher.num_valid(tokens_of("xbc")) == 0
    assert matcher.num_valid(()) == 0
    assert matcher.forced(2) == tuple(tokens_of("ab"))
    assert next_tokens(matcher) == [set(tokens_of("a"))]
