"""The places of adapters in the engines, for the pages of customers and of the operator.

A control plane alone has no engine, and a server whose engine is down has no answer: the pages then leave places out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from manylora.console.api import Api
from manylora.console.visitors import Visitor

MOST_NAMES = 100
TIERS = ("on_device", "in_host", "on_disk", "fetching", "failed", "absent")
"""States of an adapter, the nearest to a request first."""
State = Mapping[str, Any]


async def states_of(api: Api, visitor: Visitor, owner: str, names: Sequence[str]) -> dict[str, State]:
    """Return the states of versions such as `triage/3` by name; of the first `MOST_NAMES` alone.

    Tenants ask for their own; the operator may ask for any owner's.
    """
    if not names:
        return {}
    if owner == visitor.tenant:
        asked = ",".join(names[:MOST_NAMES])
        reply = await api.ask("GET", "/v1/account/adapters", query={"names": asked})
        return {each["name"]: each for each in reply.json["data"]} if reply.is_ok else {}
    if not visitor.is_operator:
        return {}
    repo = names[0].partition("/")[0]
    query = {"tenant": owner, "prefix": f"{repo}/", "limit": MOST_NAMES}
    reply = await api.ask("GET", "/v1/adapters", query=query)
    return {each["id"]: each for each in reply.json["data"]} if reply.is_ok else {}


def together(states: Iterable[State]) -> State | None:
    """Return the nearest tier and the last use of several versions; None: there is no state."""
    found = list(states)
    if not found:
        return None
    uses = [each["last_use_s"] for each in found if each["last_use_s"] is not None]
    nearest = min((each["state"] for each in found), key=TIERS.index)
    return {"state": nearest, "last_use_s": min(uses, default=None)}


def heat_map(adapters: Sequence[State]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of the replicas, and a row for each adapter with its state at each of them.

    An adapter of an engine without a fleet is at the engine of its base.
    """
    places = [each.get("replicas") or {each["base"] or "engine": each["state"]} for each in adapters]
    replicas = sorted({name for place in places for name in place})
    rows = [
        {**each, "at": [place.get(name, "absent") for name in replicas]}
        for each, place in zip(adapters, places, strict=True)
    ]
    return replicas, sorted(rows, key=lambda row: (min(map(TIERS.index, row["at"])), -row["hits"], row["id"]))
