"""When a generation ends: the order of the reasons, and stop strings across token boundaries."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.request import StopParams
from manylora.engine.stopping import OpenText, Stop, StopChecker, StopSearch, TextStream

END = 2
SPECIAL = 3


class PieceStream:
    """A text stream over a list of pieces: token i is piece i; the special tokens have no text."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def hidden(self, token_id: int) -> str:
        return ""


class ByteStream:
    """A text stream whose tokens are bytes: a character's text comes with its last byte."""

    def __init__(self) -> None:
        self._held = b""

    def push(self, token_id: int) -> str:
        self._held += bytes([token_id])
        try:
            text = self._held.decode()
        except UnicodeDecodeError:
            return ""
        self._held = b""
        return text

    def hidden(self, token_id: int) -> str:
        return ""


def never_opened(_: bool) -> TextStream:
    raise AssertionError("text was decoded without a stop string")


def open_pieces(pieces: Sequence[str]) -> OpenText:
    return lambda _: PieceStream(pieces)


def run(checker: StopChecker, tokens: Sequence[int]) -> tuple[int, Stop] | None:
    """Push tokens until one stops; return how many were taken, and the stop."""
    for taken, token_id in enumerate(tokens, start=1):
        stop = checker.push(token_id, taken)
        if stop is not None:
            return taken, stop
    return None


def test_the_token_that_spends_the_budget_ends_by_length() -> None:
    checker = StopChecker(StopParams(max_new_tokens=3), {END}, never_opened)
    assert run(checker, [7, 7, 7, 7]) == (3, Stop(reason=FinishReason.LENGTH))


def test_a_stop_string_that_an_early_token_completes_does_not_count() -> None:
    pieces = ["a", "b", "a", "b"]
    for least, stop in ((0, 2), (1, 2), (2, 4), (3, 4), (4, None)):
        params = StopParams(max_new_tokens=9, min_new_tokens=least, stop_strings=("ab",))
        checker = StopChecker(params, (), open_pieces(pieces))
        found = run(checker, range(4))
        assert found == (None if stop is None else (stop, Stop(reason=FinishReason.STOP_STRING, stop_string="ab")))


def test_length_comes_before_end_of_sequence() -> None:
    checker = StopChecker(StopParams(max_new_tokens=2), {END}, never_opened)
    assert run(checker, [7, END]) == (2, Stop(reason=FinishReason.LENGTH))


def test_length_comes_before_a_stop_string() -> None:
    checker = StopChecker(StopParams(max_new_tokens=1, stop_strings=("a",)), {END}, open_pieces(["a"]))
    assert run(checker, [0]) == (1, Stop(reason=FinishReason.LENGTH))


def test_an_end_of_sequence_token_ends() -> None:
    checker = StopChecker(StopParams(max_new_tokens=9), {END, 5}, never_opened)
    assert run(checker, [7, 5, 7]) == (2, Stop(reason=FinishReason.END_OF_SEQUENCE))


def test_an_ignored_end_of_sequence_token_does_not_end() -> None:
    checker = StopChecker(StopParams(max_new_tokens=9, ignore_eos=True), {END}, never_opened)
    assert run(checker, [7, END, 7]) is None


def test_a_stop_token_ends() -> None:
    checker = StopChecker(StopParams(max_new_tokens=9, stop_token_ids=(8,)), {END}, never_opened)
    assert run(checker, [7, 8]) == (2, Stop(reason=FinishReason.STOP_TOKEN))


def test_an_ignored_end_of_sequence_token_can_be_a_stop_token() -> None:
    params = StopParams(max_new_tokens=9, stop_token_ids=(END,), ignore_eos=True)
    checker = StopChecker(params, {END}, never_opened)
    assert run(checker, [7, END]) == (2, Stop(reason=FinishReason.STOP_TOKEN))


def test_end_of_sequence_is_the_reason_where_a_stop_token_is_that_too() -> None:
    checker = StopChecker(StopParams(max_new_tokens=9, stop_token_ids=(END,)), {END}, never_opened)
    assert run(checker, [END]) == (1, Stop(reason=FinishReason.END_OF_SEQUENCE))


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello", " wor", "ld", "!"], ("world",), (3, "world")),
        (["a", "b", "c", "d"], ("bcd",), (4, "bcd")),
        (["aa", "ab"], ("aab",), (2, "aab")),  # a match that begins inside a failed one
        (["one\n", "\ntwo"], ("\n\n",), (2, "\n\n")),
        (["x", "END and more", "END"], ("END",), (2, "END")),  # inside one piece, not at its end
        (["", "", "s", "", "top"], ("stop",), (5, "stop")),  # pieces without text in between
        (["abc"], ("c", "b"), (1, "b")),  # the one that is complete first
        (["a", "b"], ("b", "ab"), (2, "ab")),  # complete together: the longer
        (["a", "bc"], ("bc", "ab"), (2, "ab")),
        (["nothing", " here"], ("nowhere",), None),
    ],
)
def test_a_stop_string_is_found_across_tokens(
    pieces: list[str], stops: tuple[str, ...], expected: tuple[int, str] | None
) -> None:
    checker = StopChecker(StopParams(max_new_tokens=99, stop_strings=stops), {END + 100}, open_pieces(pieces))
    found = run(checker, range(len(pieces)))
    wanted = None
    if expected is not None:
        wanted = (expected[0], Stop(reason=FinishReason.STOP_STRING, stop_string=expected[1]))
    assert found == wanted


def test_special_tokens_do_not_break_a_stop_string() -> None:
    pieces = ["st", "op", "", ""]
    params = StopParams(max_new_tokens=9, stop_strings=("stop",), ignore_eos=True)
    checker = StopChecker(params, {END}, open_pieces(pieces))
    assert run(checker, [0, SPECIAL, END, 1]) == (4, Stop(reason=FinishReason.STOP_STRING, stop_string="stop"))


def test_a_stop_string_of_characters_split_over_tokens_is_found_with_their_last_byte() -> None:
    checker = StopChecker(StopParams(max_new_tokens=99, stop_strings=("é→",)), {999}, lambda _: ByteStream())
    tokens = "xé→y".encode()
    assert run(checker, tokens) == (len("xé→".encode()), Stop(reason=FinishReason.STOP_STRING, stop_string="é→"))


@given(
    pieces=st.lists(st.text("ab\n", max_size=4), max_size=30),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_a_stop_string_ends_at_the_first_token_that_completes_it_and_never_else(
    pieces: list[str], stops: list[str]
) -> None:
    expected = None
    for taken in range(1, len(pieces) + 1):
        text = "".join(pieces[:taken])
        complete = [(text.index(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
        if complete:
            expected = (taken, Stop(reason=FinishReason.STOP_STRING, stop_string=min(complete)[2]))
            break

    checker = StopChecker(StopParams(max_new_tokens=999, stop_strings=tuple(stops)), {999}, open_pieces(pieces))
    assert run(checker, range(len(pieces))) == expected


def test_only_the_reach_of_a_stop_string_is_kept_of_a_long_text() -> None:
    checker = StopChecker(
        StopParams(max_new_tokens=10**9, stop_strings=("abcd", "zz")), {999}, open_pieces(["ab ", "cd"])
    )
    assert run(checker, [0] * 10_000) is None
    assert checker._search is not None
    assert len(checker._search._tail) == 3


Piece = tuple[str, bool]
"""The text of a token, and whether the shown text leaves it out."""
HIDDEN = ("<e>", "<s>", "<")
PIECES = st.lists(
    st.one_of(
        st.tuples(st.text("ab<e>", max_size=3), st.just(False)), st.tuples(st.sampled_from(HIDDEN), st.just(True))
    ),
    max_size=14,
)
STOPS = st.lists(st.text("ab<es>", min_size=1, max_size=6), min_size=1, max_size=3)


def complete(pieces: Sequence[Piece], stops: Sequence[str]) -> set[tuple[str, int, int]]:
    """Every stop string in the text, by either reading, with the shown characters it takes: slow and plain."""
    spelled, shown_before, owners = "", [0], []
    for number, (text, is_hidden) in enumerate(pieces):
        for character in text:
            spelled += character
            shown_before.append(shown_before[-1] + (not is_hidden))
            owners.append(number if is_hidden else None)
    shown = "".join(text for text, is_hidden in pieces if not is_hidden)
    found = {(stop, at, at + len(stop)) for stop in stops for at in places(shown, stop)}
    for stop in stops:
        for at in places(spelled, stop):
            end = at + len(stop)
            inside = {owner for owner in owners[at:end] if owner is not None}
            around = {owner for owner in (*owners[:at], *owners[end:]) if owner is not None}
            if inside and not inside & around:
                found.add((stop, shown_before[at], shown_before[end]))
    return found


def places(text: str, stop: str) -> list[int]:
    return [at for at in range(len(text)) if text.startswith(stop, at)]


@given(pieces=PIECES, stops=STOPS)
def test_a_stop_string_may_name_special_tokens_that_the_text_leaves_out(pieces: list[Piece], stops: list[str]) -> None:
    search = StopSearch(tuple(stops))
    settled = 0
    for taken, (text, is_hidden) in enumerate(pieces, start=1):
        match = search.push("" if is_hidden else text, text if is_hidden else "")
        wanted = complete(pieces[:taken], stops)
        assert (match is not None) == bool(wanted)
        if match is not None:
            assert tuple(match) in wanted
            assert match.end == min(end for _, _, end in wanted)
            assert settled <= match.start, "a character of a stop string was let out"
            return
        settled = search.settled()
        assert settled <= search.length


def test_a_named_special_token_ends_a_generation_and_a_part_of_one_does_not() -> None:
    for stop, wanted in (("<|end|>", 2), ("b<|end|>c", 3), ("ab<|end|>", 2), ("end", None), ("|>c", None), ("bc", 3)):
        search = StopSearch((stop,))
        pushes = [search.push("ab"), search.push("", "<|end|>"), search.push("c")]
        ends = [number for number, match in enumerate(pushes, start=1) if match is not None]
        assert ends[:1] == ([] if wanted is None else [wanted]), stop


def test_a_far_special_token_is_forgotten() -> None:
    search = StopSearch(("ab<e>",))
    assert search.push("", "<s>") is None
    assert search._spelled is not None
    assert [search.push("xy") for _ in range(4)] == [None] * 4
    assert search._spelled is None
