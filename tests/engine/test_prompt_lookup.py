"""Prompt look-up: which tokens it drafts from a sequence's own past, and when none."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.prompt_lookup import MAX_INDEXED, MAX_MISSES, NGRAMS, PromptLookup

EAGER = 16
"""Accepted tokens after which a look-up drafts as many tokens as any of these tests asks for."""


def eager() -> PromptLookup:
    lookup = PromptLookup()
    lookup.note(EAGER, EAGER)
    return lookup


def specified(tokens: Sequence[int], most: int) -> tuple[int, ...]:
    """The same draft by plain search, from scratch."""
    for size in NGRAMS:
        context = tuple(tokens[-size:])
        ends = [end for end in range(size, len(tokens)) if tuple(tokens[end - size : end]) == context]
        if ends:
            grown = list(tokens)
            for position in range(ends[-1], ends[-1] + most):
                grown.append(grown[position])
            return tuple(grown[len(tokens) :])
    return ()


few_tokens = st.lists(st.integers(0, 3), max_size=40)


@given(few_tokens, few_tokens, st.integers(0, 12))
def test_the_index_finds_what_a_search_would(first: list[int], more: list[int], most: int) -> None:
    lookup = eager()
    lookup.propose(first, most)  # whether it is asked now, or only later, makes no difference
    tokens = first + more
    assert lookup.propose(tokens, most) == specified(tokens, most)


@given(few_tokens, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_equal_histories_give_equal_drafts_within_what_was_asked_for(
    prompt: list[int], history: list[tuple[int, int, int]]
) -> None:
    one, twin = PromptLookup(), PromptLookup()
    tokens = list(prompt)
    for token, most, accepted in history:
        tokens.append(token)
        draft = one.propose(tokens, most)
        assert draft == twin.propose(list(tokens), most)
        assert len(draft) <= most
        if draft:
            one.note(len(draft), min(accepted, len(draft)))
            twin.note(len(draft), min(accepted, len(draft)))


def test_a_long_prompt_is_indexed_piece_by_piece_before_it_drafts() -> None:
    tokens = [1, 2, 3, *range(10, 10 + 2 * MAX_INDEXED), 1, 2, 3]
    asked, told = eager(), eager()
    drafts = [asked.propose(tokens, 2) for _ in range(3)]
    assert drafts == [(), (), (10, 11)]
    told.index(tokens)
    told.index(tokens)
    assert told.propose(tokens, 2) == (10, 11)


def test_the_longer_context_counts_and_then_the_later_place() -> None:
    assert eager().propose([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1) == (7,)
    assert eager().propose([2, 3, 7, 2, 3, 8, 0, 2, 3], 1) == (8,)


def test_a_single_token_that_came_before_is_no_context() -> None:
    assert eager().propose([5, 1, 6, 2, 5], 4) == ()


def test_a_loop_is_drafted_past_the_end_of_the_sequence() -> None:
    assert eager().propose([9, 4, 4, 4], 5) == (4, 4, 4, 4, 4)
    assert eager().propose([1, 2, 3, 1, 2, 3, 1, 2], 7) == (3, 1, 2, 3, 1, 2, 3)


def test_a_draft_grows_while_it_is_accepted() -> None:
    lookup, tokens = PromptLookup(), [1, 2] * 40
    lengths = []
    for _ in range(5):
        draft = lookup.propose(tokens, 8)
        lengths.append(len(draft))
        lookup.note(len(draft), len(draft))
    assert lengths == [1, 2, 4, 8, 8]


def test_a_partly_accepted_draft_sets_the_length_of_the_next() -> None:
    lookup = eager()
    assert len(lookup.propose([1, 2] * 4, 8)) == 8
    lookup.note(8, 3)
    assert len(lookup.propose([1, 2] * 4, 8)) == 3


def test_the_pause_doubles_with_each_rejected_draft_and_an_accepted_one_ends_it() -> None:
    lookup, tokens = PromptLookup(), [1, 2] * 4
    pauses = []
    for _ in range(MAX_MISSES + 2):
        lookup.note(4, 0)
        pauses.append(next(step for step in range(100) if lookup.propose(tokens, 4)))
    assert pauses == [1, 3, 7, 15, 31, 31, 31]
    lookup.note(1, 1)
    lookup.note(1, 0)
    assert [len(lookup.propose(tokens, 4)) for _ in range(2)] == [0, 1]
