"""Numbers the way people say them."""

from __future__ import annotations

import random


def alternatives(text: str) -> list[str]:
    """The parts of ``text`` between its ``|`` marks."""
    return text.split("|")


_ONES = alternatives(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|"
    "seventeen|eighteen|nineteen"
)
_TENS = alternatives("twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety")


def number_words(value: int, rng: random.Random) -> str:
    """Spell 0..100 the way a transcript might: ``twenty-five``, ``twenty five``, ``a hundred``."""
    if value < 20:
        return _ONES[value]
    if value == 100:
        return rng.choice(["a hundred", "one hundred"])
    tens, ones = _TENS[value // 10 - 2], value % 10
    return tens if ones == 0 else f"{tens}{rng.choice([' ', '-'])}{_ONES[ones]}"


def number(value: int, rng: random.Random, words_share: float = 0.5) -> str:
    """``value`` as digits or, for ``words_share`` of the calls, in words."""
    return number_words(value, rng) if value <= 100 and rng.random() < words_share else str(value)
