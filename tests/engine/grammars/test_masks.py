"""Masks filled beside a forward pass: the same as those filled at once, also after a step that failed."""

import numpy as np
import pytest

from manylora.engine.grammars.masks import MaskFiller, Matched
from manylora.models.text.grammar import regex_grammar
from tests.engine.grammars.vocabulary import END, VOCAB, matcher_of, tokens_of


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
