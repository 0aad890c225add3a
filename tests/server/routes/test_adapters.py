"""/v1/adapters: what operators see, what they may do, who they are, and what is said to everybody else."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.main import get_command

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.cli.remote.adapters import adapters
from manylora.clock import ManualClock
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.observability.metric_table import MANYLORA_METRICS
from manylora.server.routes import adapter_listing as catalogue
from manylora.tenancy import RepositoryFacts
from tests.server.conftest import House
from tests.server.fake_control import FakeControl
from tests.support.paths import ROOT
from tests.support.waiting import PATIENCE_S

InHouse = Callable[..., None]


def fill(house: House, count: int) -> None:
    for number in range(count):
        ref = AdapterRef(SourceName.LOCAL, f"many/{number:03}")
        state = AdapterState.ON_DEVICE if number % 3 == 0 else AdapterState.ON_DISK
        house.engine.adapters.known[ref] = AdapterInfo(id=ref.id, source="local", state=state)


def ids(reply: httpx2.Response) -> list[str]:
    return [entry["id"] for entry in reply.json()["data"]]


def test_the_list_has_filters_and_pages(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        fill(house, 25)
        assert len(ids(await house.client.get("/v1/adapters"))) == 27  # with triage, for which nobody asked
        assert ids(await house.client.get("/v1/adapters/?prefix=team/")) == ["team/tone"]
        assert len(ids(await house.client.get("/v1/adapters?prefix=many&state=on_device"))) == 9
        assert ids(await house.client.get("/v1/adapters?source=hub")) == []
        found, after = [], ""
        for _ in range(4):
            page = await house.client.get(f"/v1/adapters?prefix=many/&limit=7{after}")
            found += ids(page)
            after = f"&after={page.json()['after']}"
        assert found == [f"many/{number:03}" for number in range(25)]
        assert (page.json()["has_more"], page.json()["after"]) == (False, None)

    in_house(scenario)


def test_the_next_page_begins_right_behind_one_that_is_gone_by_then(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        fill(house, 6)
        page = await house.client.get("/v1/adapters?prefix=many&limit=3")
        del house.engine.adapters.known[AdapterRef(SourceName.LOCAL, "many/002")]
        rest = await house.client.get(f"/v1/adapters?prefix=many&limit=3&after={page.json()['after']}")
        assert ids(rest) == ["many/003", "many/004", "many/005"]

    in_house(scenario)


def test_what_stands_at_one_place_is_not_torn_apart_by_a_page(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for token in ("one", "two", "three"):
            ref = AdapterRef(SourceName.HUB, "many/a", token)
            house.engine.adapters.known[ref] = AdapterInfo(id="many/a", source="hub", state=AdapterState.ABSENT)
        fill(house, 1)
        page = await house.client.get("/v1/adapters?prefix=many&limit=2")
        assert ids(page) == ["many/000", "many/a", "many/a", "many/a"]
        assert "three" not in page.text

    in_house(scenario)


def test_one_adapter_is_shown_whatever_its_id_looks_like(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path in ("team/tone", "team%2Ftone", "team/tone/", "team/tone?source=local"):
            reply = await house.client.get(f"/v1/adapters/{path}")
            assert reply.status_code == 200
            assert (reply.json()["id"], reply.json()["source"], reply.json()["state"]) == (
                "team/tone",
                "local",
                "absent",
            )
        assert set(reply.json()) == set(AdapterInfo.__dataclass_fields__)

    in_house(scenario)


@pytest.mark.parametrize(
    ("action", "name", "begun", "done"),
    [
        ("preload", "triage", {"state": "fetching"}, {"state": "on_device", "rank": 8}),
        ("preload", "broken", {"state": "fetching"}, {"state": "failed"}),
        ("pin", "team/tone", {"state": "fetching", "is_pinned": True}, {"state": "on_device", "is_pinned": True}),
        ("pin", "huge", {"state": "fetching", "is_pinned": True}, {"is_pinned": False}),
        ("verify", "triage", {"is_verified": None}, {"is_verified": True}),
        ("verify", "rotten", {"is_verified": None}, {"is_verified": False}),
    ],
)
def test_an_action_begins_at_once_and_is_waited_for_if_asked(
    in_house: InHouse, action: str, name: str, begun: dict[str, Any], done: dict[str, Any]
) -> None:
    async def scenario(house: House) -> None:
        at_once = await house.post(f"/v1/adapters/{name}", {"action": action})
        assert (at_once.status_code, begun.items() <= at_once.json().items()) == (202, True)
        assert house.engine.adapters.asked[-1] == (AdapterAction(action), AdapterRef(SourceName.LOCAL, name))
        waited = await house.post(f"/v1/adapters/{name}?wait=30", {"action": action})
        assert (waited.status_code, done.items() <= waited.json().items()) == (200, True)

    in_house(scenario)


def test_what_is_done_at_once_says_so(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for action in ("unpin", "evict"):
            reply = await house.post("/v1/adapters/triage", {"action": action})
            assert (reply.status_code, reply.json()["state"]) == (200, "absent")

    in_house(scenario)


def test_deleting_waits_until_nothing_is_left(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post("/v1/adapters/busy?wait=9", {"action": "preload"})
        begun = await house.client.delete("/v1/adapters/busy")
        assert (begun.status_code, begun.json()["is_deleted"], begun.json()["pins"]) == (202, True, 1)
        done = await house.client.delete("/v1/adapters/busy?wait=9")
        assert (done.status_code, done.json()["state"], done.json()["pins"]) == (200, "absent", 0)

    in_house(scenario)


@pytest.mark.parametrize(
    ("action", "status"), [("delete", 202), ("pin", 202), ("evict", 202), ("preload", 200), ("verify", 200)]
)
def test_an_act_that_a_silent_replica_will_get_is_not_over(in_house: InHouse, action: str, status: int) -> None:
    async def scenario(house: House) -> None:
        manage = house.link.manage

        async def without_one(action: AdapterAction, ref: AdapterRef) -> AdapterInfo:
            info: AdapterInfo = await manage(action, ref)
            return replace(info, silent=("replica-1",))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(house.link, "manage", without_one)
            path = "/v1/adapters/tone?wait=9"
            asked = house.client.delete(path) if action == "delete" else house.post(path, {"action": action})
            reply = await asked
        assert (reply.status_code, reply.json()["silent"]) == (status, ["replica-1"])

    in_house(scenario)


def test_a_wait_ends_when_its_time_is_over(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        reply = await house.post("/v1/adapters/stuck?wait=0.05", {"action": "preload"})
        assert (reply.status_code, reply.json()["state"]) == (202, "fetching")
        reply = await house.client.delete("/v1/adapters/stuck?wait=0.05")
        assert reply.status_code == 202

    in_house(scenario)


def test_no_wait_is_longer_than_a_load_may_take(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        async with asyncio.timeout(PATIENCE_S):
            reply = await house.post("/v1/adapters/stuck?wait=1e9", {"action": "preload"})
        assert reply.status_code == 202

    in_house(scenario, load_timeout_s=0.1)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "parameter"),
    [
        ("GET", "/missing", None, 404, "adapter_not_found", None),
        ("DELETE", "/missing", None, 404, "adapter_not_found", None),
        ("POST", "/missing", {"action": "pin"}, 404, "adapter_not_found", None),
        ("POST", "/busy", {"action": "evict"}, 409, "adapter_in_use", None),
        ("POST", "/triage", {"action": "explode"}, 400, "invalid_parameter", "action"),
        ("POST", "/triage", {"action": "delete"}, 400, "invalid_parameter", "action"),
        ("POST", "/triage", {"action": 7}, 400, "invalid_parameter", "action"),
        ("POST", "/triage", {}, 400, "invalid_parameter", "action"),
        ("POST", "/triage", [], 400, "invalid_parameter", None),
        ("POST", "/triage", None, 400, "invalid_json", None),
        ("POST", "/triage?wait=-1", {"action": "pin"}, 400, "invalid_parameter", "wait"),
        ("POST", "/triage?wait=nan", {"action": "pin"}, 400, "invalid_parameter", "wait"),
        ("POST", "/triage?wait=soon", {"action": "pin"}, 400, "invalid_parameter", "wait"),
        ("POST", "/triage", {"action": "pin", "api_token": 7}, 400, "invalid_parameter", "api_token"),
        ("GET", "/.hidden", None, 400, "adapter_reference_invalid", "adapter_id"),
        ("GET", "/a%00b", None, 400, "adapter_reference_invalid", "adapter_id"),
        ("GET", "/a/%2e%2e/b", None, 400, "adapter_reference_invalid", "adapter_id"),
        ("GET", "/" + "x" * 300, None, 400, "adapter_reference_invalid", "adapter_id"),
        ("GET", "/triage?source=nowhere", None, 400, "adapter_reference_invalid", "adapter_source"),
        ("GET", "/triage?source=hub", None, 400, "adapter_reference_invalid", "adapter_source"),
        ("GET", "/tiny", None, 400, "adapter_reference_invalid", "adapter_id"),
        ("DELETE", "/__base_model__", None, 400, "adapter_reference_invalid", "adapter_id"),
        ("GET", "?limit=0", None, 400, "invalid_parameter", "limit"),
        ("GET", "?limit=1001", None, 400, "invalid_parameter", "limit"),
        ("GET", "?limit=²", None, 400, "invalid_parameter", "limit"),
        ("GET", "?state=flying", None, 400, "invalid_parameter", "state"),
        ("GET", "?source=flying", None, 400, "invalid_parameter", "source"),
        ("GET", "?after=nobody", None, 400, "invalid_parameter", "after"),
        ("PUT", "/triage", {}, 405, "method_not_allowed", None),
        ("POST", "", {"action": "pin"}, 405, "method_not_allowed", None),
        ("DELETE", "", None, 405, "method_not_allowed", None),
    ],
)
def test_every_refusal_has_its_row(
    in_house: InHouse, method: str, path: str, body: object, status: int, code: str, parameter: str | None
) -> None:
    async def scenario(house: House) -> None:
        content: dict[str, Any] = {} if body is None else {"json": body}
        reply = await house.client.request(method, f"/v1/adapters{path}", **content)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["param"]) == (status, code, parameter)
        assert error["type"] == "invalid_request_error"
        assert not house.engine.adapters.asked or status in (404, 409)

    in_house(scenario)


REMOTE: dict[str, Any] = {"client": ("10.0.0.7", 5)}


@pytest.mark.parametrize(
    ("caller", "headers", "is_let_in"),
    [
        ({}, {}, True),
        ({"client": ("::1", 5)}, {"host": "[::1]:8080"}, True),
        ({"client": ("::ffff:127.0.0.1", 5)}, {"host": "localhost:8080"}, True),
        (REMOTE, {}, False),
        ({"client": ("::ffff:10.0.0.7", 5)}, {}, False),
        ({"client": ("testclient", 5)}, {}, False),
        (REMOTE, {"x-forwarded-for": "127.0.0.1"}, False),
        ({}, {"x-forwarded-for": "10.0.0.7"}, False),
        ({}, {"forwarded": "for=10.0.0.7"}, False),
        ({}, {"x-forwarded-host": "api.example"}, False),
        ({}, {"x-forwarded-proto": "https"}, False),
        ({}, {"via": "1.1 cache.example"}, False),
        ({}, {"host": "192.0.2.4:8080"}, False),
    ],
)
@pytest.mark.parametrize("is_open", [False, True])
def test_only_this_machine_s_own_programs_are_operators(
    in_house: InHouse, caller: dict[str, Any], headers: dict[str, str], is_let_in: bool, is_open: bool
) -> None:
    async def scenario(house: House) -> None:
        transport = httpx2.ASGITransport(app=house.app, **caller)  # type: ignore[arg-type]  # ASGI's types differ by library
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as client:
            replies = [
                await client.get("/v1/adapters"),
                await client.get("/v1/adapters/triage"),
                await client.post("/v1/adapters/triage", json={"action": "unpin"}),
                await client.delete("/v1/adapters/triage?wait=5"),
                await client.get("/acme/deployments/v2/llms/tiny/v1/adapters"),
            ]
            for reply in replies:
                assert reply.status_code == (200 if is_let_in or is_open else 403)
                if reply.status_code == 403:
                    assert reply.json()["error"]["code"] == "insufficient_permissions"
                    assert "server.admin_open" in reply.json()["error"]["message"]
            assert bool(house.engine.adapters.asked) == (is_let_in or is_open)
            assert (await client.get("/v1/models")).status_code == 200

    in_house(scenario, admin_open=is_open)


def test_an_engine_that_is_gone_is_said_to_be(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        await house.post("/generate", {"inputs": "CRASH"})
        house.engine.live.clear()
        for reply in (
            await house.client.get("/v1/adapters"),
            await house.post("/v1/adapters/triage", {"action": "pin"}),
        ):
            assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")

    in_house(scenario)


def test_the_document_names_the_routes(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        document = (await house.client.get("/openapi.json")).json()
        one = document["paths"]["/v1/adapters/{adapter_id}"]
        assert set(one) == {"get", "post", "delete"}
        info = (await house.client.get("/v1/adapters/triage")).json()
        answer = one["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(answer["properties"]) == set(info)

    in_house(scenario)


def test_models_lists_what_a_tenant_used_of_a_remote_source_and_nobody_else_s(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        prefix = "/acme/deployments/v2/llms/tiny"
        hub = {"adapter_source": "hub"}
        await house.post(f"{prefix}/generate", {"inputs": "Hi", "parameters": {"adapter_id": "org/a", **hub}})
        await house.post(f"{prefix}/generate", {"inputs": "Hi", "parameters": {"adapter_id": "missing/a", **hub}})
        assert ids(await house.client.get(f"{prefix}/v1/models")) == ["tiny", "team/tone", "triage", "hub://org/a"]
        assert (await house.client.get(f"{prefix}/v1/models/hub://org/a")).json()["parent"] == "tiny"
        assert (await house.client.get(f"{prefix}/v1/models/org/a")).status_code == 404  # without its source it is none
        assert ids(await house.client.get("/v1/models")) == ["tiny", "team/tone", "triage"]
        assert (await house.client.get("/v1/models/hub://org/a")).status_code == 404
        await house.client.delete("/v1/adapters/org/a?source=hub&wait=5")
        assert ids(await house.client.get(f"{prefix}/v1/models")) == ["tiny", "team/tone", "triage"]

    in_house(scenario, sources=("local", "hub"))


def test_a_deleted_name_is_listed_nowhere_until_its_source_has_another_version(
    in_house: InHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(house: House) -> None:
        assert "triage" in ids(await house.client.get("/v1/adapters"))
        reply = await house.client.delete("/v1/adapters/triage?wait=9")
        assert reply.status_code == 200
        for path in ("/v1/models", "/v1/adapters"):
            assert "triage" not in ids(await house.client.get(path))
        assert (await house.client.get("/v1/models/triage")).status_code == 404
        monkeypatch.setattr(catalogue, "RECHECK_S", 0.0)
        assert "triage" not in ids(await house.client.get("/v1/models"))
        house.engine.adapters.deleted.clear()
        for path in ("/v1/models", "/v1/adapters"):
            assert "triage" in ids(await house.client.get(path))

    in_house(scenario)


def test_deleted_names_are_asked_for_together(in_house: InHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        for name in ("triage", "team/tone"):
            await house.client.delete(f"/v1/adapters/{name}?wait=9")
        ask, both = house.link.info, asyncio.Barrier(2)

        async def ask_together(ref: AdapterRef) -> AdapterInfo:
            async with asyncio.timeout(PATIENCE_S):
                await both.wait()
            return await ask(ref)

        monkeypatch.setattr(catalogue, "RECHECK_S", 0.0)
        monkeypatch.setattr(house.link, "info", ask_together)
        assert ids(await house.client.get("/v1/models")) == ["tiny"]

    in_house(scenario)


def test_no_request_however_odd_is_answered_with_a_fault(in_house: InHouse) -> None:
    dice = random.Random(11)
    pieces = [
        "triage",
        "team",
        "%2F",
        "%2e%2e",
        "%00",
        "%ff",
        "/",
        "//",
        "a:b",
        "@",
        "hub:x",
        "ü",
        "%",
        "?",
        "&",
        "=",
        " ",
    ]
    names = ["source", "wait", "limit", "after", "state", "prefix", "action"]
    values = ["", "-1", "1e309", "nan", "local", "hub", "fetching", ":", "a:b", "%ff", "9" * 400, "\u202e", "0.01", "٣"]
    bodies = [b"", b"{}", b"[]", b'{"action":"pin"}', b'{"action":["pin"]}', b'{"action":"\\ud800"}', b"\xff", b"null"]

    async def scenario(house: House) -> None:
        for _ in range(400):
            path = "".join(dice.choices(pieces, k=dice.randrange(5)))
            query = "&".join(f"{dice.choice(names)}={dice.choice(values)}" for _ in range(dice.randrange(4)))
            method, body = dice.choice(["GET", "POST", "DELETE", "PUT", "HEAD"]), dice.choice(bodies)
            reply = await house.client.request(
                method,
                f"/v1/adapters/{path}?{query}",
                content=b"" if method in ("GET", "HEAD") else body,
                headers={"content-type": "application/json"},
            )
            assert reply.status_code < 500, (method, path, query, body, reply.text)
            assert method == "HEAD" or reply.headers["content-type"] == "application/json"

    in_house(scenario, sources=("local", "hub"))


def test_the_page_for_operators_names_all_they_have() -> None:
    page = (ROOT / "docs" / "operating-adapters.md").read_text(encoding="utf-8")
    fields = [f"`{name}`" for name in AdapterInfo.__dataclass_fields__ if name not in ("id", "source", "state")]
    states = [f"`{state}`" for state in AdapterState]
    actions = [
        f"`{action}`" for action in AdapterAction if action not in (AdapterAction.DELETE, AdapterAction.PREFETCH)
    ]
    verbs = [f"manylora adapters {name}" for name in get_command(adapters).commands]  # type: ignore[attr-defined]  # a group
    metrics = [f"`{metric.name}" for metric in MANYLORA_METRICS if metric.name.startswith("manylora_adapter")]
    assert [word for word in (*fields, *states, *actions, *verbs, *metrics) if word not in page] == []


def test_each_act_is_told_to_the_control_plane_once_it_answers(in_house: InHouse) -> None:
    clock, control = ManualClock(), FakeControl()
    directory = Directory(control, clock, poll_s=1.0, max_age_s=600)

    async def scenario(house: House) -> None:
        headers = {"x-request-id": "ticket-7"}
        await house.client.get("/v1/adapters/team/tone")
        control.is_away = True
        assert (await house.post("/v1/adapters/team/tone", {"action": "pin"}, headers=headers)).is_success
        assert control.acts == []
        control.is_away = False
        assert (await house.client.delete("/v1/adapters/team/tone", headers=headers)).is_success
        told = [(act.verb, act.adapter, act.actor, act.request_id) for act in control.acts]
        assert told == [(verb, "local://team/tone", "default", "ticket-7") for verb in ("pin", "delete")]

    in_house(scenario, access=Access(clock, directory=directory))


UPLOADS = (
    RepositoryFacts(owner=TenantId("acme"), name="triage", versions=(1, 2)),
    RepositoryFacts(owner=TenantId("globex"), name="triage", versions=(1,), is_public=True),
)


def test_an_operator_sees_and_steers_each_tenants_adapter_of_one_name(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        refs = {owner: AdapterRef(SourceName.PBASE, "triage/1", tenant=owner) for owner in ("acme", "globex")}
        for owner, ref in refs.items():
            pinned = await house.post(f"/v1/adapters/triage/1?tenant={owner}&wait=9", {"action": "pin"})
            assert (pinned.status_code, pinned.json()["tenant"], pinned.json()["is_pinned"]) == (200, owner, True)
            assert house.engine.adapters.asked[-1] == (AdapterAction.PIN, ref)
            for action in ("preload", "verify", "unpin", "evict"):
                await house.post(f"/v1/adapters/triage/1?tenant={owner}&wait=9", {"action": action})
                assert house.engine.adapters.asked[-1] == (AdapterAction(action), ref)
            shown = await house.client.get(f"/v1/adapters/triage/1?tenant={owner}")
            assert (shown.json()["id"], shown.json()["tenant"]) == ("triage/1", owner)
        listed = (await house.client.get("/v1/adapters?source=pbase")).json()["data"]
        assert [(entry["id"], entry["tenant"]) for entry in listed] == [("triage/1", "acme"), ("triage/1", "globex")]
        of_acme = (await house.client.get("/v1/adapters?tenant=acme")).json()["data"]
        assert [entry["id"] for entry in of_acme] == ["triage/1", "triage/2"]  # one for which nobody has asked, too
        newest = await house.client.get("/v1/adapters/triage?tenant=acme")
        assert (newest.json()["id"], newest.json()["tenant"]) == ("triage/2", "acme")
        await house.client.delete("/v1/adapters/triage/1?tenant=globex&wait=9")
        assert house.engine.adapters.deleted == {refs["globex"]}

    in_house(scenario, sources=("local", "pbase"), repositories=UPLOADS)


def test_pages_go_through_one_id_of_many_tenants(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        owners = [f"t{number}" for number in range(5)]
        for owner in owners:
            ref = AdapterRef(SourceName.PBASE, "same/1", tenant=owner)
            await house.link.info(ref)
        found, after, has_more = [], "", True
        while has_more:
            page = (await house.client.get(f"/v1/adapters?source=pbase&limit=2{after}")).json()
            found += [entry["tenant"] for entry in page["data"]]
            after, has_more = f"&after={page['after']}", page["has_more"]
        assert found == owners

    in_house(scenario, sources=("local", "pbase"))


def test_a_tenant_that_does_not_exist_is_named(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for path in ("/v1/adapters?tenant=nobody", "/v1/adapters/triage?tenant=nobody"):
            reply = await house.client.get(path)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "tenant")
            assert "no tenant `nobody`" in reply.json()["error"]["message"]

    in_house(scenario, sources=("local", "pbase"), repositories=UPLOADS)


def test_an_archived_version_can_still_be_taken_off_the_device(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert (await house.client.get("/v1/adapters/triage/7")).json()["source"] == "local"
        await house.post("/v1/adapters/triage/7?tenant=acme", {"action": "unpin"})
        ref = AdapterRef(SourceName.PBASE, "triage/7", tenant="acme")
        assert house.engine.adapters.asked[-1] == (AdapterAction.UNPIN, ref)

    in_house(scenario, sources=("local", "pbase"), repositories=UPLOADS)


def test_a_delete_that_is_refused_leaves_the_name_on_the_list(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        folder = tmp_path / "adapters" / "missing-here"
        folder.mkdir()
        for part in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / part).write_text("{}", encoding="utf-8")
        assert (await house.client.delete("/v1/adapters/missing-here")).status_code == 404
        assert "missing-here" in ids(await house.client.get("/v1/models"))

    in_house(scenario)
