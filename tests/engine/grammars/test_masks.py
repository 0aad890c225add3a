"""Masks filled beside a forward pass: the same as those filled at once, also after a step that failed."""

import threading
from typing import Any

import numpy as np
import pytest

from manylora.engine.grammars.masks import MaskFiller, Matched
from manylora.errors import EngineFault
from manylora.models.text.grammar import regex_grammar
from tests.engine.grammars.vocabulary import END, VOCAB, matcher_of, tokens_of
from tests.support.waiting import PATIENCE_S


def matched(*patterns: str) -> list[Matched]:
    return [(matcher_of(regex_grammar(pattern), (END, VOCAB + 40)), ()) for pattern in patterns]


def taken(filler: MaskFiller, rows: list[Matched], *, begins: bool) -> list[list[int]]:
    if begins:
        filler.begin(rows)
    return [line.tolist() for line in filler.take(rows)]


@pytest.mark.parametrize("draft", [(), tuple(tokens_of("ab"))])
def test_masks_that_were_begun_are_those_filled_at_once(draft: tuple[int, ...]) -> None:
    filler = MaskFiller()
    rows = [*matched("a[xyz]", "[0-9]+"), (matcher_of(regex_grammar("abc?")), draft)]
    begun, at_once = (taken(filler, rows, begins=begins) for begins in (True, False))
    assert begun == at_once
    assert len(begun) == 3 + len(draft)
    filler.close()


def test_masks_of_a_step_that_failed_are_dropped() -> None:
    filler = MaskFiller()
    filler.begin(matched("a", "b", "c"))
    filler.drop()
    rows = matched("z")
    filler.begin(matched("y"))
    filler.begin(rows)
    assert np.array_equal(filler.take(rows), MaskFiller().take(rows))
    filler.close()
    assert taken(filler, rows, begins=True) == taken(MaskFiller(), rows, begins=False), "it starts again"
    filler.close()


class Library:
    """The library's matcher, of which one method is another function."""

    def __init__(self, matcher: Any, name: str, own: Any) -> None:
        self._matcher = matcher
        setattr(self, name, own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)


class Panic(BaseException):
    """A panic of the library, which is no `Exception`."""


def with_library(row: Matched, name: str, own: Any) -> Matched:
    row[0]._matcher = Library(row[0]._matcher, name, own)  # type: ignore[assignment]  # as the library's
    return row


@pytest.mark.parametrize("draft", [(), tuple(tokens_of("ab"))])
def test_a_matcher_that_does_not_return_ends_alone(draft: tuple[int, ...]) -> None:
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

    others = set(threading.enumerate())
    before, stuck, behind = (matched(pattern)[0] for pattern in ("a", "abc", "[0-9]"))
    with_library(stuck, "deep_copy" if draft else "unsafe_compute_mask_ptr", hangs)
    filler, rows = MaskFiller(wait), [before, (stuck[0], draft), behind]
    expected = [taken(filler, [row], begins=True)[0] for row in (before, behind)]
    for _ in range(2):
        masks = taken(filler, rows, begins=True)
        assert [masks[0], masks[-1]] == expected
        assert not any(any(row) for row in masks[1:-1])
        assert len(masks) == 3 + len(draft)
    error = stuck[0].no_token_left()
    assert isinstance(error, EngineFault)
    assert "takes too long" in error.message
    ends.set()
    filler.close()
    for thread in set(threading.enumerate()) - others:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_step_that_failed_does_not_wait_for_ever() -> None:
    ends = threading.Event()
    (stuck,) = matched("a")
    with_library(stuck, "unsafe_compute_mask_ptr", lambda *_: ends.wait(60))
    filler = MaskFiller(lambda event: False)
    filler.begin([stuck])
    filler.drop()
    ends.set()


@pytest.mark.parametrize(
    "name",
    ["unsafe_compute_mask_ptr", "is_error", "consume_token", "is_stopped", "validate_tokens", "compute_ff_tokens"],
)
def test_a_matcher_that_fails_ends_alone(name: str) -> None:
    def fails(*_: object) -> None:
        raise Panic("at the wrong place")

    before, broken, behind = (matched(pattern)[0] for pattern in ("a", "abc", "[0-9]"))
    matcher, _ = with_library(broken, name, fails)
    matcher.advance(tokens_of("a")[0])
    assert not matcher.is_over
    matcher.num_valid(tokens_of("bc"))
    matcher.forced(2)
    masks = taken(MaskFiller(), [before, broken, behind], begins=True)
    assert [any(row) for row in masks] == [True, False, True]
    error = matcher.no_token_left()
    assert isinstance(error, EngineFault)
    assert "at the wrong place" in error.message
