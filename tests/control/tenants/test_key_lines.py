"""Who made which key: what a revocation ends, what no key can do to itself, and how nobody is locked out."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from manylora.control.billing.ledger import insert_records
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.janitor import Janitor
from manylora.control.tenants.keys import MAX_IN_GRACE, MAX_LIVE_KEYS
from tests.control.plane import Plane, record

KEYS = "/v1/account/keys"
ALL = ["infer", "manage", "read", "upload"]


def id_of(key: str) -> str:
    return key.split("_")[1]


async def make(plane: Plane, key: str, *scopes: str, **terms: Any) -> str:
    reply = await plane.call("POST", KEYS, {"scopes": list(scopes) or ALL, **terms}, key=key)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["key"])


async def rotate(plane: Plane, key: str, *, by: str, **terms: Any) -> str:
    reply = await plane.call("POST", f"{KEYS}/{id_of(key)}/rotate", terms, key=by)
    assert reply.status_code == 201, reply.text
    return str(reply.json()["key"])


async def revoke(plane: Plane, key: str, *, by: str, query: str = "") -> httpx2.Response:
    return await plane.call("DELETE", f"{KEYS}/{id_of(key)}{query}", key=by)


async def lives(plane: Plane, key: str) -> bool:
    return (await plane.call("GET", "/users/current", key=key)).status_code == 200


def test_a_first_key_has_all_scopes_of_a_tenant_and_others_do_not_manage(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        made = (await plane.call("POST", "/admin/tenants", {"id": "acme"})).json()["key"]
        assert made["scopes"] == ALL
        plain = (await plane.call("POST", KEYS, {}, key=made["key"])).json()
        assert (plain["scopes"], plain["origin"]) == (["infer", "read", "upload"], made["id"])
        for scope in ("admin", "Infer", "everything"):
            refused = await plane.call("POST", KEYS, {"scopes": [scope]}, key=made["key"])
            assert refused.status_code in (400, 403)
        signed_up = (await plane.client.post("/v1/signup", json={"id": "beta"})).json()["key"]
        assert signed_up["scopes"] == ALL

    run(scenario, settings={"control.signup_open": True})


@pytest.mark.parametrize("scope", ["infer", "read", "upload", "manage"])
def test_a_scope_is_given_out_only_by_a_key_that_has_it(run: Callable[..., None], scope: str) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        manager = await make(plane, owner, "manage", *(each for each in ALL if each not in (scope, "manage")))
        wanted = {"scopes": [scope]} if scope != "manage" else {"scopes": ["admin"]}
        assert (await plane.call("POST", KEYS, wanted, key=manager)).status_code == 403
        assert (await plane.call("POST", KEYS, {"scopes": ["query"]}, key=owner)).json()["scopes"] == ["infer", "read"]

    run(scenario)


def test_a_revocation_ends_all_that_was_made_with_the_key_through_any_rotation(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        leaked, bystander = await make(plane, owner), await make(plane, owner, "infer")
        child = await make(plane, leaked)
        again = await rotate(plane, leaked, by=leaked)  # the thief hides behind a rotation
        grandchild = await make(plane, child, "infer")
        moved = await rotate(plane, child, by=child)
        hijacked = await rotate(plane, bystander, by=again)  # its secret is the thief's now
        done = await revoke(plane, leaked, by=owner)
        assert set(done.json()["ended"]) == {id_of(key) for key in (again, grandchild, moved, hijacked)}
        for key in (leaked, child, again, grandchild, moved, hijacked):
            assert not await lives(plane, key)
        assert await lives(plane, owner)
        edge = {key.id: key.is_revoked for key in (await take_snapshot(plane.control, 0)).keys}
        assert all(edge[each] for each in done.json()["ended"]), "edges learn of each"

    run(scenario)


def test_a_rotation_keeps_the_origin_and_what_was_made(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        child = await make(plane, owner)
        moved = await rotate(plane, child, by=owner)
        renewed = await rotate(plane, owner, by=owner)
        listed = {key["id"]: key for key in (await plane.call("GET", KEYS, key=renewed)).json()["keys"]}
        assert listed[id_of(moved)]["origin"] == id_of(owner)
        assert (listed[id_of(child)]["successor"], listed[id_of(owner)]["origin"]) == (id_of(moved), None)
        assert await lives(plane, moved), "a rotation is no revocation"

    run(scenario)


def test_a_leaked_first_key_is_rotated_with_an_end_to_all_it_made(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        stolen = [await make(plane, owner) for _ in range(3)]
        deeper = await make(plane, stolen[0], "infer")
        renewed = await rotate(plane, owner, by=owner, end_made=True)
        assert await lives(plane, renewed)
        assert not any([await lives(plane, key) for key in (owner, *stolen, deeper)])

    run(scenario)


def test_a_key_steers_none_of_those_it_was_made_with(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        child = await make(plane, owner)
        deeper = await make(plane, child)
        for above in (owner, child):
            assert (await revoke(plane, above, by=deeper)).status_code == 403
            for path, body in (("rotate", {}), ("limits", {"requests_per_minute": 1})):
                method = "POST" if path == "rotate" else "PUT"
                refused = await plane.call(method, f"{KEYS}/{id_of(above)}/{path}", body, key=deeper)
                assert (refused.status_code, "was made with" in refused.text) == (403, True)
        assert (await revoke(plane, deeper, by=owner)).status_code == 200

    run(scenario)


def test_a_full_house_of_a_thiefs_keys_locks_no_owner_out(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        thief = await make(plane, owner)
        for _ in range(MAX_LIVE_KEYS - 2):
            await make(plane, thief, "infer")
        assert (await plane.call("POST", KEYS, {}, key=owner)).status_code == 400
        renewed = await rotate(plane, owner, by=owner, grace_s=60)
        for _ in range(MAX_IN_GRACE + 2):
            renewed = await rotate(plane, renewed, by=renewed, grace_s=60)
        listed = (await plane.call("GET", KEYS, key=renewed)).json()["keys"]
        in_grace = [key for key in listed if key["successor"] and not key["revoked"]]
        assert len(in_grace) == MAX_IN_GRACE, "a rotation ends the oldest of those in their grace"
        assert len((await revoke(plane, thief, by=renewed)).json()["ended"]) == MAX_LIVE_KEYS - 1
        await make(plane, renewed)

    run(scenario)


def test_expired_keys_take_no_room(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        for _ in range(MAX_LIVE_KEYS - 1):
            await make(plane, owner, "infer", expires_in_s=60)
        assert (await plane.call("POST", KEYS, {}, key=owner)).status_code == 400
        plane.clock.advance(61)
        await make(plane, owner)

    run(scenario)


def test_a_rotated_key_is_rotated_no_further_and_ends_alone_if_asked(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        renewed = await rotate(plane, owner, by=owner, grace_s=3600)
        refused = await plane.call("POST", f"{KEYS}/{id_of(owner)}/rotate", {}, key=renewed)
        assert (refused.status_code, id_of(renewed) in refused.text) == (400, True)
        whole = await revoke(plane, owner, by=renewed)
        assert (whole.status_code, "force=true" in whole.text) == (400, True)
        alone = await revoke(plane, owner, by=renewed, query="?only=true")
        assert alone.json()["ended"] == [id_of(owner)]
        assert await lives(plane, renewed)
        assert (await revoke(plane, renewed, by=renewed, query="?only=true")).status_code == 400

    run(scenario)


def test_the_last_key_that_manages_stays_unless_forced(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        other = (await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ALL})).json()["key"]
        soon = (await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ALL, "expires_in_s": 60})).json()["key"]
        assert (await revoke(plane, other, by=soon)).status_code == 200
        for by in (owner, soon):
            refused = await revoke(plane, owner, by=by)
            assert (refused.status_code, "no key left" in refused.text) == (400, True), "one that ends keeps nothing"
        limits = await plane.call("PUT", f"{KEYS}/{id_of(owner)}/limits", {"max_rank": 1}, key=soon)
        assert limits.status_code == 400
        assert (await revoke(plane, owner, by=owner, query="?force=true")).status_code == 200
        assert not await lives(plane, owner)
        other = (await plane.call("POST", "/admin/tenants/acme/keys", {"scopes": ALL})).json()["id"]
        assert (await plane.call("DELETE", f"/admin/keys/{other}")).status_code == 200, "the operator makes another"
        refused = await plane.call("DELETE", f"/admin/keys/{id_of(plane.admin_key)}")
        assert (refused.status_code, "admin-key" in refused.text) == (422, True)

    run(scenario)


def test_limits_that_a_key_set_itself_it_lifts_again_and_no_others(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        own = f"{KEYS}/{id_of(owner)}/limits"
        assert (await plane.call("PUT", own, {"requests_per_minute": 0}, key=owner)).status_code == 200
        assert (await plane.call("POST", KEYS, {}, key=owner)).status_code == 403, "limited, it makes none"
        renewed = await rotate(plane, owner, by=owner)
        own = f"{KEYS}/{id_of(renewed)}/limits"
        lifted = await plane.call("PUT", own, {}, key=renewed)
        assert lifted.json()["limits"]["requests_per_minute"] is None
        narrow = await make(plane, renewed, limits={"requests_per_minute": 5})
        for by_maker in (False, True):
            if by_maker:
                path = f"{KEYS}/{id_of(narrow)}/limits"
                assert (await plane.call("PUT", path, {"max_rank": 1}, key=renewed)).status_code == 200
            refused = await plane.call("PUT", f"{KEYS}/{id_of(narrow)}/limits", {}, key=narrow)
            assert (refused.status_code, "set them itself" in refused.text) == (403, True)

    run(scenario)


def test_keys_are_made_at_a_bounded_pace_and_rotated_all_the_same(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manylora.control.tenants.keys.MAX_MADE_A_DAY", 3)

    async def scenario(plane: Plane) -> None:
        owner = await plane.new_tenant("acme")
        thief = await make(plane, owner)
        for _ in range(3):
            await revoke(plane, await make(plane, thief, "infer"), by=thief)
        assert (await plane.call("POST", KEYS, {}, key=thief)).status_code == 429
        assert (await plane.call("POST", KEYS, {}, key=await rotate(plane, thief, by=thief))).status_code == 429
        for _ in range(2):
            await make(plane, owner)
        refused = await plane.call("POST", KEYS, {}, key=owner)
        assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
        owner = await rotate(plane, owner, by=owner)
        assert (await plane.call("POST", "/admin/tenants/acme/keys", {})).status_code == 201
        plane.clock.advance(86_401)
        await make(plane, owner)

    run(scenario)


def test_a_key_that_ends_meanwhile_makes_no_other(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        from manylora.control.http.schemas import NewKey
        from manylora.control.routes.key_operations import make_key
        from manylora.control.tenants.audit import on_the_machine
        from manylora.errors import InvalidApiKey
        from manylora.ids import KeyId

        owner = await plane.new_tenant("acme")
        leaked = await make(plane, owner)
        assert (await revoke(plane, leaked, by=owner)).status_code == 200
        # As a request would go on whose key was looked at just before.
        with pytest.raises(InvalidApiKey):
            await make_key(plane.control, on_the_machine(plane.control), "acme", NewKey(), maker=KeyId(id_of(leaked)))

    run(scenario)


def test_the_last_use_is_kept_within_a_minute_and_over_a_restart(run: Callable[..., None]) -> None:
    async def scenario(plane: Plane) -> None:
        caretaker = Janitor(plane.control)
        owner = await plane.new_tenant("acme")
        child = await make(plane, owner, "infer")

        async def last_uses() -> dict[str, str | None]:
            found = (await plane.call("GET", "/admin/tenants/acme/keys")).json()["keys"]
            return {key["id"]: key["last_used"] for key in found}

        assert await last_uses() == {id_of(owner): None, id_of(child): None}, "nothing is written on a request's way"
        await caretaker.stop()  # what was not kept yet is kept at the end
        first = await last_uses()
        assert (first[id_of(owner)] is not None, first[id_of(child)]) == (True, None)
        plane.clock.advance(600)
        headers = {"authorization": f"Bearer {plane.control.edge_token}"}
        told = {"last": [[id_of(child), plane.control.now_ms()], ["unknown0", 1]]}
        assert (await plane.client.post("/internal/key-uses", json=told, headers=headers)).status_code == 204
        await caretaker.round()
        reported = (await last_uses())[id_of(child)]
        assert reported is not None
        plane.clock.advance(30)
        shipped = [record(1, key=id_of(child), opened_ms=plane.control.now_ms())]
        await insert_records(plane.control, shipped)
        assert (await last_uses())[id_of(child)] == reported, "at most once a minute"
        plane.clock.advance(31)
        await insert_records(plane.control, [record(2, key=id_of(child), opened_ms=plane.control.now_ms())])
        later = (await last_uses())[id_of(child)]
        assert later is not None
        assert later > reported

    run(scenario)
