"""Generated catalogues, and their way to a control plane: shown first, then applied by the digest of the plan."""

from typing import Any

from hypothesis import strategies as st

from manylora.rollouts.rollout import MAX_ARMS, POINTS
from tests.control.plane import Plane

Json = dict[str, Any]  # JSON values of several types
PATH = "/admin/catalogue"

NAMES = st.from_regex(r"[b-y][a-z0-9]{0,5}", fullmatch=True).filter(lambda name: name not in ("default", "llms"))
COUNTS = st.one_of(st.none(), st.integers(0, 10**9))
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
BASE = "mistralai/Mistral-7B-Instruct-v0.1"


@st.composite
def alias_values(draw: st.DrawFn, most: int = 99) -> Json:
    """An alias of versions from 1 to `most`, maybe with the shadow `most + 1`."""
    size = min(MAX_ARMS, most)
    versions = draw(st.lists(st.integers(1, most), min_size=1, max_size=size, unique=True))
    cuts = sorted(draw(st.sets(st.integers(1, POINTS - 1), min_size=len(versions) - 1, max_size=len(versions) - 1)))
    sizes = [end - begin for begin, end in zip([0, *cuts], [*cuts, POINTS], strict=True)]
    weights = {str(version): size for version, size in zip(versions, sizes, strict=True)}
    more = {
        "sticky": draw(st.sampled_from([None, "X-User", "x-user"])),
        "shadow": draw(st.sampled_from([None, most + 1])),
    }
    return more | ({"version": versions[0]} if len(versions) == 1 and draw(st.booleans()) else {"weights": weights})


REPOSITORIES = st.fixed_dictionaries(
    {"aliases": st.dictionaries(NAMES, alias_values(), max_size=2)},
    optional={"description": TEXTS, "public": st.booleans(), "shared_with": st.lists(NAMES, max_size=3)},
)
LIMITS = st.fixed_dictionaries(
    {"requests_per_minute": COUNTS, "adapters": COUNTS},
    optional={"bases": st.dictionaries(NAMES, st.fixed_dictionaries({"tokens_per_minute": COUNTS}), max_size=2)},
)
DEPLOYMENTS = st.fixed_dictionaries(
    {
        "config": st.fixed_dictionaries(
            {"baseModel": st.sampled_from([BASE, BASE.lower()]), "hfToken": st.just("secret")},
            optional={
                "minReplicas": st.integers(0, 2),
                "maxReplicas": st.sampled_from([2, 3.0]),
                "cooldownTime": st.integers(0, 9),
                "customArgs": st.lists(st.sampled_from([1, True, 1.0, None, "é"]), max_size=2),
            },
        )
    },
    optional={"description": TEXTS},
)
TERMS: Json = {
    "plan": NAMES,
    "weight": st.integers(1, 1000),
    "state": st.sampled_from(["active", "suspended"]),
}
TENANTS = st.fixed_dictionaries(
    {"repositories": st.dictionaries(NAMES, REPOSITORIES, max_size=2)},
    optional=TERMS | {"limits": LIMITS, "deployments": st.dictionaries(NAMES, DEPLOYMENTS, max_size=1)},
)
PRICES = st.fixed_dictionaries(
    {"input_nanousd": st.integers(5, 99), "output_nanousd": st.integers(0, 10**9)},
    optional={"cached_input_nanousd": st.integers(0, 5)},
)
CATALOGUES = st.fixed_dictionaries(
    {"tenants": st.dictionaries(NAMES, TENANTS, max_size=3), "prices": st.dictionaries(NAMES, PRICES, max_size=2)}
)
OWN_LIMITS = st.fixed_dictionaries({"requests_per_minute": COUNTS}, optional={"adapters": COUNTS})
OWN_REPOSITORY = st.fixed_dictionaries(
    {}, optional={"description": TEXTS, "public": st.booleans(), "shared_with": st.lists(NAMES, max_size=3)}
)
OF_A_SERVER = st.builds(
    lambda acme, triage, aliases, others: {
        "tenants": {"acme": acme | {"repositories": {"triage": triage | {"aliases": aliases}, **others}}}
    },
    st.fixed_dictionaries(
        {"deployments": st.dictionaries(NAMES, DEPLOYMENTS, max_size=2)}, optional=TERMS | {"limits": OWN_LIMITS}
    ),
    OWN_REPOSITORY,
    st.dictionaries(st.sampled_from(["prod", "next", "old"]), alias_values(most=2), max_size=3),
    st.dictionaries(st.sampled_from(["tone", "style"]), OWN_REPOSITORY, max_size=2),
)
"""Catalogues of the tenant `acme`, whose repository `triage` has the versions 1 to 3."""


async def put(plane: Plane, body: Json, query: str = "", *, digest: str | None = None) -> Json:
    """Apply a catalogue by the digest of the plan that is shown first, or by `digest`."""
    if "dryRun" not in query:
        shown = await put(plane, body, f"dryRun=true&{query}") if digest is None else {"digest": digest}
        query = f"{query}&digest={shown['digest']}"
    reply = await plane.call("PUT", f"{PATH}?{query}", body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def export(plane: Plane) -> Json:
    return dict((await plane.call("GET", PATH)).json())


def names(found: Json) -> list[str]:
    """The lines of a plan without their fields."""
    return [f"{step['verb']} {step['kind']} {step['name']}" for step in found["plan"]]
