"""Expands the phrase templates of this folder.

Two constructs: ``[a|b|c]`` picks one alternative (they nest), ``{slot}`` is filled with a value. Slots with a fixed
list of values live in ``shared/*.txt``; order numbers, dates, amounts and the like are made up here.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LABELS = ("billing", "refund", "delivery", "account", "technical", "cancellation", "feature_request", "other")

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{(\w+)\}")


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a text file; a written ``\\n`` stands for a line break."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip().replace("\\n", "\n") for line in lines if line.strip()]


class Phrases:
    """All word lists and templates of the folder, with a seeded source of chance."""

    def __init__(self, rng: random.Random) -> None:
        """Read the folder's text files."""
        self._rng = rng
        shared = FOLDER / "shared"
        self.openers = read_lines(shared / "openers.txt")
        self.closers = read_lines(shared / "closers.txt")
        self.stories = read_lines(shared / "stories.txt")
        self.connectors = read_lines(shared / "connectors.txt")
        self.templates = {label: read_lines(FOLDER / "templates" / f"{label}.txt") for label in LABELS}
        self.background = {label: read_lines(FOLDER / "background" / f"{label}.txt") for label in LABELS}
        self._slots = {
            "feature": read_lines(shared / "features.txt"),
            "wish": read_lines(shared / "wishes.txt"),
        }
        for line in read_lines(shared / "slots.txt"):
            name, values = line.split(":", 1)
            self._slots[name] = [value.strip() for value in values.split("|")]

    def pick(self, template: str) -> str:
        """One expansion of a template."""
        text = template
        while _CHOICE.search(text):
            text = _CHOICE.sub(lambda match: self._rng.choice(match[1].split("|")), text)
        while _SLOT.search(text):
            text = _SLOT.sub(lambda match: self._value(match[1]), text)
        return re.sub(r"\s+([,.?!])", r"\1", re.sub(r" {2,}", " ", text)).strip()

    def one_of(self, templates: list[str]) -> str:
        """One expansion of one of several templates."""
        return self.pick(self._rng.choice(templates))

    def _value(self, slot: str) -> str:
        rng = self._rng
        if slot == "order":
            return rng.choice(
                (
                    str(rng.randint(10_000, 9_999_999)),
                    f"#{rng.randint(1000, 99_999)}",
                    f"{rng.choice('ABKRTXZ')}{rng.choice('LMNQ')}-{rng.randint(1000, 99_999)}",
                    f"{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
                )
            )
        if slot == "amount":
            value = rng.choice((5, 9.99, 12, 14.9, 19.99, 25, 39, 49.5, 60, 84.2, 99, 120, 249, 310, 1180))
            value = round(value + rng.choice((0, 0, 0.4, 1, 3, 7)), 2)
            number = f"{value:g}" if value == int(value) else f"{value:.2f}"
            return rng.choice(("${}", "€{}", "£{}", "{} euros", "{} EUR", "{} dollars", "{}", "{} pounds")).format(
                number
            )
        if slot == "date":
            month = rng.choice(self._slots["month"])
            day = rng.randint(1, 28)
            return rng.choice((f"{day} {month}", f"{month} {day}", f"{day}.{rng.randint(1, 12)}.", f"the {day}th"))
        if slot == "time":
            return f"{rng.randint(6, 21)}:{rng.choice(('00', '15', '30', '45'))}"
        if slot == "phone":
            return f"0{rng.randint(100, 999)} 555 {rng.randint(1000, 9999)}"
        if slot == "email":
            user, host = (
                rng.choice(("k.moor", "anna88", "office", "jp", "m.silva")),
                rng.choice(("mail", "post", "firma")),
            )
            return f"{user}@{host}.example"
        return rng.choice(self._slots[slot])
