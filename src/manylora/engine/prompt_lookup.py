"""Guesses a sequence's next tokens by looking up what followed its last ones before.

Source: prompt lookup decoding (A. Saxena, 2023; transformers' `prompt_lookup_num_tokens`), verified as in speculative
decoding (Leviathan et al., arXiv 2211.17192). Changes: the index is kept up token by token, where the original scans
the whole sequence in each step; a run that reaches the end of the sequence goes on into the guess itself, so that a
loop of any length is guessed whole; and guessing pays attention to how its last guesses fared.
"""

from collections.abc import Sequence

NGRAMS = (3, 2)
"""Lengths of the context looked up, the first that has come before counts. One token alone is too often chance."""

MAX_MISSES = 5
"""After this many guesses in a row that were wrong from their first token, the pause before the next stays the same."""


class PromptLookup:
    """The n-grams of one sequence by what last followed them, and how many tokens it is worth guessing.

    Guesses change no token, only how many rows a step has, and rows cost time. So a guess begins with one token and is
    twice as long after each that was right to its end; a wrong one cuts it to what was right; and one that was wrong
    from its first token makes the sequence pass over 1, 3, 7 ... 2**MAX_MISSES - 1 of its next chances.

    A pure function of the calls made: equal histories give equal guesses.
    """

    __slots__ = ("_ends", "_indexed", "_length", "_misses", "_pause")

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}  # n-gram → where it last ended, below the newest token
        self._indexed = 0  # n-grams that end below this are in the index
        self._length = 1
        self._misses = 0
        self._pause = 0

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """Return a guess of the tokens that follow `tokens`, at most `most` of them, or none.

        Args:        tokens  the whole sequence; it has only grown since the last call
        Complexity:  O(tokens new since the last call + tokens returned)
        """
        if most <= 0:
            return ()
        start = self._find(tokens)
        if start is None:
            return ()
        if self._pause > 0:
            self._pause -= 1
            return ()
        # The guess reads on into itself: tokens[start] is always there, and each one guessed is there for the next.
        count, period = min(most, self._length), len(tokens) - start
        known = list(tokens[start : start + count])
        while len(known) < count:
            known.append(known[len(known) - period])
        return tuple(known)

    def note(self, guessed: int, right: int) -> None:
        """Learn that of a guess of `guessed` tokens the first `right` came true; the sequence goes on after them."""
        if right > 0:
            self._misses = 0
            self._length = max(self._length, 2 * right) if right == guessed else right
            return
        self._length = 1
        self._misses = min(self._misses + 1, MAX_MISSES)
        self._pause = 2**self._misses - 1

    def _find(self, tokens: Sequence[int]) -> int | None:
        """Where what followed the sequence's last tokens before begins, or None if they are new."""
        # An n-gram enters once a token follows it, so the one the sequence ends with never finds itself.
        for end in range(max(self._indexed, min(NGRAMS)), len(tokens)):
            for size in NGRAMS:
                if size <= end:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
        for size in NGRAMS:
            found = self._ends.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if found is not None:
                return found
        return None
