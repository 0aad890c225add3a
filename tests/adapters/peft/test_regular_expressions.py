"""Regular expressions of a config mean what they mean to Python, and take no longer than their size allows."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.adapters.peft import regular_expressions as regular
from manylora.adapters.peft.patterns import PatternRefused
from manylora.adapters.peft.regular_expressions import MAX_CHARACTERS, Regular

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "(a|b)", "(?:ab|a)", "(?=a)", "(?!b)", "(?<=a)", "^", "$"]
PIECES = st.builds(
    lambda atom, times: atom + times,
    st.sampled_from([*ATOMS, r"\b", "(a*|b)", "(|a)", "1", "(?<!b)", "x"]),
    st.sampled_from(["", "", "", "*", "+", "?", "*?", "+?", "{1,2}", "{0,3}?", "{2}"]),
)
PATTERNS = st.recursive(
    st.lists(PIECES, min_size=1, max_size=4).map("".join),
    lambda inner: st.builds(lambda one, other: f"({one}|{other})", inner, inner),
    max_leaves=3,
)


@settings(max_examples=2 * settings().max_examples)
@given(pattern=PATTERNS, text=st.text(alphabet="ab.1x", max_size=8))
def test_a_pattern_matches_as_python_matches(pattern: str, text: str) -> None:
    try:
        compiled = re.compile(pattern)
    except re.error:
        return
    ours, theirs = Regular(pattern), compiled.match(text)
    ends = ours.ends(text, 0)
    assert bool(ends) == (theirs is not None)
    assert theirs is None or ends[0] == theirs.end()
    assert ours.matches_whole(text) == (compiled.fullmatch(text) is not None)


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "((a*)*)*b", "(.*)(.*)(.*)(.*)b", "(a|a)" * 20 + "b", "a?" * 20 + "a" * 20]
)
def test_a_pattern_that_would_backtrack_for_ever_is_answered(pattern: str) -> None:
    matcher = Regular(pattern)
    for length in (40, 90):
        assert not matcher.matches_whole("a" * length + "c")


@pytest.mark.parametrize(
    "pattern",
    [r"(a)\1", "(?P<x>a)(?P=x)", "(?(1)a|b)", "(?i)a", "(?i:a)", "(?>a*)a", "a*+a", "(", "[", "*", "a{3,1}", r"\1"],
)
def test_what_cannot_be_bounded_or_read_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        Regular(pattern)


@pytest.mark.parametrize("pattern", ["(" * 300 + "a" + ")" * 300, "a" * (MAX_CHARACTERS + 1), "(" * 5000])
def test_what_is_too_large_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        Regular(pattern)


def test_many_texts_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular, "MAX_STEPS", 50_000)
    matcher = Regular("(a|b|ab|ba|aa|bb)*" * 12 + "c")

    def match_many() -> None:
        for number in range(2000):
            matcher.matches_whole("ab" * 30 + str(number))

    with pytest.raises(PatternRefused, match="too long"):
        match_many()
