"""A tiny phrase grammar: ``(a|b|)`` picks one alternative, groups nest, ``{name}`` is left for the caller."""

from __future__ import annotations

import random
import re

_INNERMOST_GROUP = re.compile(r"\(([^()]*)\)")


def expand(template: str, rng: random.Random) -> str:
    """Resolve every group of ``template`` at random and squeeze runs of spaces."""
    while True:
        template, replaced = _INNERMOST_GROUP.subn(lambda match: rng.choice(match.group(1).split("|")), template)
        if not replaced:
            return " ".join(template.split())
