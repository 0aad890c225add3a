"""When a generation ends: the order of the reasons, and stop strings across token boundaries."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manylora.engine.events import FinishReason
from manylora.engine.request import StopParams
from manylora.engine.stopping import Stop, StopChecker, TextStream

END = 2
SPECIAL = 3


class PieceStream:
    """A text stream over a list of pieces: token i is piece i; the special tokens have no text."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = pieces

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]


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


def never_opened() -> TextStream:
    raise AssertionError("text was decoded without a stop string")


def open_pieces(pieces: Sequence[str]) -> Callable[[], TextStream]:
    return lambda: PieceStream(pieces)


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
    checker = StopChecker(StopParams(max_new_tokens=99, stop_strings=("é→",)), {999}, ByteStream)
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
