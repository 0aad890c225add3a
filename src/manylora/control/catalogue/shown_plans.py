"""The plans that were shown: the digest that names each, and the lines that differ once the state has changed."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from manylora.control.catalogue.planning import CatalogueStep
from manylora.errors import InvalidParameter, StateChanged

MOST_LINES = 50_000
"""Lines of all plans that are kept to name differences; the digest alone decides."""
MOST_PLANS = 16
TOLD_LINES = 10
TOLD_CHARACTERS = 200
DIGEST_DIGITS = 32
Json = dict[str, Any]  # values of several types


class ShownPlans:
    """The last plans that this process has shown. A plan that it has forgotten is still refused by its digest."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, list[str]] = OrderedDict()

    def show(self, steps: Sequence[CatalogueStep]) -> str:
        """Keep a plan that is shown, and return its digest: 128 bits of SHA-256 over its lines, in hexadecimal."""
        lines = [_line(step) for step in steps]
        digest = _digest(lines)
        self._lines[digest] = lines
        self._lines.move_to_end(digest)
        while len(self._lines) > MOST_PLANS or self._is_full():
            self._lines.popitem(last=False)
        return digest

    def require(self, digest: str | None, steps: Sequence[CatalogueStep]) -> None:
        """Require that a plan is the one that was shown under a digest.

        Raises `StateChanged` with the lines that differ; `InvalidParameter` without a digest, unless the plan is empty.
        """
        if not steps and digest is None:
            return
        if digest is None:
            raise InvalidParameter(
                "`digest` is needed: that of the plan which `?dryRun=true` shows for this catalogue", parameter="digest"
            )
        lines = [_line(step) for step in steps]
        if _digest(lines) != digest:
            raise StateChanged(
                f"the plan is not the one that was shown, so nothing was done; {self._told(digest, lines)}"
            )

    def _is_full(self) -> bool:
        return len(self._lines) > 1 and sum(map(len, self._lines.values())) > MOST_LINES

    def _told(self, digest: str, lines: list[str]) -> str:
        shown = self._lines.get(digest)
        if shown is None:
            return "show it again: this server has no plan of that digest"
        gone, come = set(shown) - set(lines), set(lines) - set(shown)
        differing = [f"no more: {line}" for line in shown if line in gone]
        differing += [f"now: {line}" for line in lines if line in come]
        if not differing:
            return "show it again: its lines have another order"
        more = len(differing) - TOLD_LINES
        told = [line[:TOLD_CHARACTERS] for line in differing[:TOLD_LINES]]
        return "; ".join(told) + (f"; and {more} lines more" if more > 0 else "")


def step_json(step: CatalogueStep) -> Json:
    """Return a step as replies show it."""
    changes = {name: {"old": old, "new": new} for name, (old, new) in step.changed.items()}
    return {"verb": step.verb.value, "kind": step.place[0], "name": name_of(step), "changes": changes}


def name_of(step: CatalogueStep) -> str:
    """Return the name of a step's object, its owner first: `acme/triage/prod`."""
    return "/".join(step.place[1:])


def _line(step: CatalogueStep) -> str:
    told = step_json(step)
    return f"{told['verb']} {told['kind']} {told['name']} {json.dumps(told['changes'], sort_keys=True)}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()[:DIGEST_DIGITS]
