"""Limits of single bases: set, kept over rotations, sent to edges, and refused for unknown bases."""

from collections.abc import Callable
from typing import Any

import pytest

from manylora.control.edges.snapshot import take_snapshot
from manylora.control.tenants.limits import narrower
from manylora.tenancy import BaseLimits, Limits
from tests.control.plane import Plane

SERVED = "SmolLM2-135M-Instruct"
PRICED = "Mistral-7b-instruct"
BOTH = {SERVED: {"requests_per_minute": 5}, PRICED: {"tokens_per_minute": 7, "concurrent_streams": 2}}
NONE = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_streams"))


def test_limits_of_bases_are_replaced_whole_and_sent_to_edges(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme", limits={"bases": BOTH})
        path = "/admin/tenants/acme/limits"
        assert (await plane.call("GET", path)).json()["bases"] == {name: NONE | own for name, own in BOTH.items()}
        snapshot = await take_snapshot(plane.control, -1)
        [facts] = [tenant for tenant in snapshot.tenants if tenant.id == "acme"]
        assert facts.limits == Limits(
            bases=(
                BaseLimits(base=PRICED, tokens_per_minute=7, concurrent_streams=2),
                BaseLimits(base=SERVED, requests_per_minute=5),
            )
        )
        body = {"bases": {SERVED: {"requests_per_minute": None}, PRICED: {"requests_per_minute": 0}}}
        changed = await plane.call("PUT", path, body)
        assert changed.json()["bases"] == {PRICED: NONE | {"requests_per_minute": 0}}
        rows = (await plane.call("GET", "/admin/audit?verb=limit")).json()["audit"]
        assert rows[0]["after"]["bases"][0]["base"] == PRICED

    run(scenario)


@pytest.mark.parametrize(
    ("bases", "named"),
    [
        ({"smollm2-135m": {"requests_per_minute": 1}}, f"nearest served one is `{SERVED}`"),
        ({SERVED: {"max_rank": 1}}, "max_rank"),
        ({SERVED: {"tokens_per_minute": -1}}, "tokens_per_minute"),
        ({SERVED: 3}, SERVED),
        ({"": {"tokens_per_minute": 1}}, "bases"),
        ({f"b{number}": {} for number in range(65)}, "bases"),
    ],
)
def test_limits_of_bases_that_mean_nothing_are_refused(run: Callable[..., None], bases: Any, named: str) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        own = (await plane.call("GET", "/v1/account/key", key=key)).json()["id"]
        limits = {"bases": bases}
        for method, path, body in (
            ("POST", "/admin/tenants", {"id": "beta", "limits": limits}),
            ("PUT", "/admin/tenants/acme/limits", limits),
            ("PATCH", "/admin/tenants/acme", {"limits": limits}),
            ("POST", "/admin/tenants/acme/keys", {"limits": limits}),
            ("PUT", f"/admin/keys/{own}/limits", limits),
        ):
            refused = await plane.call(method, path, body)
            assert refused.status_code == 422, (path, refused.text)
            assert named in refused.text
        for path, body in (("/v1/account/keys", {"limits": limits}), (f"/v1/account/keys/{own}/limits", limits)):
            refused = await plane.call("POST" if path.endswith("keys") else "PUT", path, body, key=key)
            assert (refused.status_code, named in refused.text) == (400, True)

    run(scenario)


def test_limits_of_a_base_that_is_served_no_more_stay(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        plane.control.note_served("passing")
        await plane.new_tenant("acme", limits={"bases": {"passing": {"requests_per_minute": 5}}})
        plane.clock.advance(10 * 86400)
        path, bases = "/admin/tenants/acme/limits", {"passing": {"requests_per_minute": 6}}
        assert (await plane.call("PUT", path, {"max_rank": 3, "bases": bases})).status_code == 200
        assert (await plane.call("PUT", path, {"bases": {"gone": {"requests_per_minute": 6}}})).status_code == 422

    run(scenario)


def test_a_keys_limits_of_bases_go_on_over_a_rotation_and_bind_it(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        limits, scopes = {"bases": {SERVED: {"concurrent_streams": 1}}}, ["infer", "manage"]
        made = (await plane.call("POST", "/admin/tenants/acme/keys", {"limits": limits, "scopes": scopes})).json()
        path = f"/admin/keys/{made['id']}/rotate"
        rotated = (await plane.call("POST", path, {})).json()
        assert rotated["limits"]["bases"] == {SERVED: NONE | {"concurrent_streams": 1}}
        refused = await plane.call("POST", "/v1/account/keys", {"scopes": ["infer"]}, key=rotated["key"])
        assert refused.status_code == 403  # a key with limits makes no others

    run(scenario)


def test_the_narrower_of_two_limits_is_so_base_by_base() -> None:
    one = Limits(adapters=3, bases=(BaseLimits(base="a", requests_per_minute=1, tokens_per_minute=9),))
    other = Limits(
        max_rank=8, bases=(BaseLimits(base="a", tokens_per_minute=4), BaseLimits(base="b", concurrent_streams=2))
    )
    bases = (
        BaseLimits(base="a", requests_per_minute=1, tokens_per_minute=4),
        BaseLimits(base="b", concurrent_streams=2),
    )
    assert narrower(one, other) == narrower(other, one) == Limits(adapters=3, max_rank=8, bases=bases)
