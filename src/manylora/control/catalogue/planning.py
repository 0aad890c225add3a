"""The plan: the steps from the present objects to the declared ones. Pure."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from manylora.control.catalogue.declared import Objects, Place, Values

PRUNED = ("alias", "repository", "deployment")
"""Kinds that a pruning deletes, in this order. Tenants are closed, and prices replaced, by commands of their own."""


class Verb(StrEnum):
    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueStep:
    """One step. old: None at a creation; new: None at a deletion; `changed`: fields with their old and new values."""

    verb: Verb
    place: Place
    old: Values | None
    new: Values | None

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:  # values of several types
        old, new = self.old or {}, self.new or {}
        names = dict.fromkeys([*old, *new])
        return {name: (old.get(name), new.get(name)) for name in names if not are_same(old.get(name), new.get(name))}


def plan(
    present: Objects,
    declared: Objects,
    *,
    pruned: Collection[Place] = (),
    contents: Mapping[Place, Values] | None = None,
) -> list[CatalogueStep]:
    """Return the steps in the order in which they can be done; none if the states are equal.

    Args:  pruned    the lists whose further objects are deleted, each as the common beginning of their places;
                     an object of any other list stays
           contents  of repositories: what goes with each of them
    """
    steps = []
    for place, new in declared.items():
        old = present.get(place)
        if old is not None and place[0] == "deployment":  # a file that names no key leaves the one that pays
            new = {"key": old.get("key"), **new} if "key" in old else new
        if old is None:
            steps.append(CatalogueStep(verb=Verb.CREATE, place=place, old=None, new=new))
        elif not are_same(old, new):
            steps.append(CatalogueStep(verb=Verb.CHANGE, place=place, old=old, new=new))
    spare = [place for place in present if place not in declared and place[:-1] in pruned]
    spare.sort(key=lambda place: PRUNED.index(place[0]))
    deletions = [
        CatalogueStep(verb=Verb.DELETE, place=place, old=present[place] | (contents or {}).get(place, {}), new=None)
        for place in spare
    ]
    return _with_room(steps + deletions)


def are_same(old: object, new: object) -> bool:
    """Return whether two JSON values are the same: `true` is not 1, as it is for Python."""
    return old == new and json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)


def _with_room(steps: list[CatalogueStep]) -> list[CatalogueStep]:
    """Put deployments behind all other steps, and those that leave memory before those that take it.

    So each comes after its tenant, whose creation another tenant's deployment must not overtake. No other object refers
    to a deployment.
    """
    others = [step for step in steps if step.place[0] != "deployment"]
    own = [step for step in steps if step.place[0] == "deployment"]
    return others + sorted(own, key=_growth)


def _growth(step: CatalogueStep) -> float:
    """Return the replicas that a step adds to a deployment; a deletion precedes every other step."""
    return float("-inf") if step.new is None else _replicas(step.new) - _replicas(step.old)


def _replicas(values: Values | None) -> float:
    given = (values or {"config": {"maxReplicas": 0}})["config"].get("maxReplicas", 1)
    return float(given) if isinstance(given, int | float) else 1.0
