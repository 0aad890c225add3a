"""Rules of aliases as the database and requests have them."""

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any

from sqlalchemy import Row

from manylora.errors import InvalidParameter
from manylora.rollouts.rollout import MAX_ARMS, POINTS, Rollout, moved, plain

MAX_HISTORY = 10
"""Earlier rules of an alias that a roll-back can restore, one after the other."""
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~\-]{1,64}")
_SECRET_HEADERS = ("authorization", "proxy-authorization", "cookie")


def rule_of(row: Row[Any]) -> Rollout:
    """Return the rule in a row of the table of aliases."""
    return plain(row.version) if row.rule is None else rule_from(json.loads(row.rule))


def history_of(row: Row[Any]) -> list[Rollout]:
    """Return the earlier rules in a row, the latest last."""
    return [] if row.history is None else [rule_from(each) for each in json.loads(row.history)]


def restorable(rules: Sequence[Rollout], versions: AbstractSet[int]) -> list[Rollout]:
    """Return those of an alias's rules whose shares are of `versions` alone, and the last one, which is in force.

    A rule that then equals the next one goes, too: a roll-back to it would change nothing.
    """
    *earlier, present = rules
    kept = [present]
    for rule in reversed(earlier):
        if not versions >= rule.shares.keys():
            continue
        left = rule if rule.shadow in versions else replace(rule, shadow=None)
        if left != kept[-1]:
            kept.append(left)
    return kept[::-1]


def columns_of(rollout: Rollout, history: list[Rollout]) -> dict[str, Any]:  # values of several types
    """Return the columns of a rule and of those before it, of which the last `MAX_HISTORY` are kept."""
    kept = [rule_json(each) for each in history[-MAX_HISTORY:]]
    return {
        "version": rollout.main,
        "rule": None if rollout.is_plain and not rollout.sticky else json.dumps(rule_json(rollout)),
        "history": json.dumps(kept) if kept else None,
    }


def rule_from(found: Mapping[str, Any]) -> Rollout:  # JSON
    """Return the rule of `rule_json`."""
    parts = tuple((int(begin), int(version)) for begin, version in found["parts"])
    return Rollout(parts=parts, sticky=found["sticky"], shadow=found["shadow"])


def rule_json(rollout: Rollout) -> dict[str, Any]:  # values of several types
    return {"parts": list(rollout.parts), "sticky": rollout.sticky, "shadow": rollout.shadow}


def shown_rule(rollout: Rollout) -> dict[str, Any]:  # values of several types
    """Return a rule as replies and the audit table show it."""
    weights = {str(version): share for version, share in rollout.shares.items()}
    return {"weights": weights, "sticky": rollout.sticky or None, "shadow": rollout.shadow}


def new_rule(old: Rollout | None, weights: Mapping[int, int], sticky: str | None, shadow: int | None) -> Rollout:
    """Return the rule that a request wants; points move from the old rule as few as possible.

    Raises `InvalidParameter` unless the weights are whole percents that make 100, of 8 versions at most.
    """
    total = sum(weights.values())
    if not weights or len(weights) > MAX_ARMS or min(weights.values()) < 1 or total != POINTS:
        raise InvalidParameter(
            f"`weights` must name 1 to {MAX_ARMS} versions with whole percents from 1 on that make {POINTS} together. "
            f"Given: {len(weights)} versions with {total}",
            parameter="weights",
        )
    if sticky and (not _HEADER.fullmatch(sticky) or sticky.lower() in _SECRET_HEADERS):
        raise InvalidParameter(
            f"`sticky` must be the name of a header of 1 to 64 characters, and none of {', '.join(_SECRET_HEADERS)}",
            parameter="sticky",
        )
    if shadow is not None and shadow in weights:
        raise InvalidParameter(f"`shadow` must be a version without a weight. Given: {shadow}", parameter="shadow")
    return Rollout(parts=moved(old, weights), sticky=(sticky or "").lower(), shadow=shadow)
