"""Deployments and the account's routes, in the shapes that Predibase's SDK reads."""

import io
import json
import zipfile
from pathlib import Path

from sqlalchemy import URL, select

from manylora.control.app.application import create_control_app
from manylora.control.billing.ledger import insert_records
from manylora.control.http.deployment_schemas import price_text
from manylora.control.storage.tables import ledger
from tests.control.plane import Plane, in_plane, record
from tests.control.uploading import base_settings

NAME = "tiny-base"
DEDICATED = {
    "name": "mine",
    "config": {
        "baseModel": "mistralai/Mistral-7B-Instruct-v0.1",
        "minReplicas": 1,
        "maxReplicas": 2,
        "cooldownTime": 600,
        "hfToken": "hf_secret",
        "customArgs": ["--x"],
        "speculator": None,
        "ours": {"kept": 1},
    },
    "description": "",
}


def test_the_served_base_has_a_shared_endpoint(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        [shared] = (await plane.call("GET", "/v2/deployments", key=key)).json()["data"]
        assert shared == {
            "name": NAME,
            "uuid": shared["uuid"],
            "description": "Tiny-Base and every adapter of it, by the token",
            "type": "shared",
            "status": "ready",
            "model": {"name": "Tiny-Base", "maxInputLength": 255},
            "accelerator": {"id": "shared"},
            "currentReplicas": 1,
            "config": {"baseModel": "Tiny-Base", "minReplicas": 1, "maxReplicas": 1, "cooldownTime": 0},
            "usesGuaranteedCapacity": False,
            "hourlyPrice": "0",
        }
        for name in (NAME, "Tiny-Base", shared["uuid"]):
            assert (await plane.call("GET", f"/v2/deployments/{name}", key=key)).json() == {"data": shared}
        for kind, count in (("shared", 1), ("serverless", 1), ("dedicated", 0), ("private", 0)):
            listed = await plane.call("GET", f"/v2/deployments?type={kind}", key=key)
            assert len(listed.json()["data"]) == count, kind
        assert (await plane.call("GET", "/v2/deployments?type=odd", key=key)).status_code == 422
        plane.clock.advance(90)
        events = (await plane.call("GET", f"/llms/{NAME}/events?detailed=false", key=key)).json()
        assert [event["eventType"] for event in events["ComputeEvents"]] == ["Ready"]
        assert (events["deploymentStatus"], events["resourceActiveTime"]) == ("ready", 90)
        for method in ("DELETE", "PUT"):
            refused = await plane.call(method, f"/v2/deployments/{NAME}", {}, key=key)
            assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_permissions")

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_dedicated_deployment_is_recorded_priced_and_pending(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("other")
        made = (await plane.call("POST", "/v2/deployments", DEDICATED, key=key)).json()["data"]
        assert (made["status"], made["type"], made["currentReplicas"]) == ("pending", "dedicated", 0)
        assert "placement.placer is off" in made["statusDetail"]
        assert (made["hourlyPrice"], made["model"]["name"]) == ("1.21", "Mistral-7b-instruct")
        assert made["config"]["ours"] == {"kept": 1}
        assert "hf_secret" not in json.dumps(made)
        taken = await plane.call("POST", "/v2/deployments", DEDICATED, key=key)
        assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
        assert (await plane.call("POST", "/v2/deployments", DEDICATED, key=other)).status_code == 200
        plane.clock.advance(5)
        change = {"config": {"maxReplicas": 5, "minReplicas": None}, "description": "more"}
        changed = (await plane.call("PUT", "/v2/deployments/mine", change, key=key)).json()["data"]
        assert (changed["config"]["minReplicas"], changed["config"]["maxReplicas"]) == (1, 5)
        assert (changed["description"], changed["config"]["cooldownTime"]) == ("more", 600)
        unchanged = (await plane.call("GET", "/v2/deployments/mine", key=other)).json()["data"]
        assert unchanged["config"]["maxReplicas"] == 2
        events = (await plane.call("GET", "/llms/mine/events", key=key)).json()
        assert [event["eventType"] for event in events["ComputeEvents"]] == ["Pending"]
        assert (await plane.call("GET", "/llms/mine/scaled", key=key)).json() == {"name": "mine", "scaled": False}
        older = (await plane.call("GET", "/v1/llms", key=key)).json()
        assert [(each["name"], each["isShared"]) for each in older] == [(NAME, True), ("mine", False)]
        active = (await plane.call("GET", "/llms?activeOnly=true", key=key)).json()
        assert [each["name"] for each in active] == [NAME]
        gone = await plane.call("DELETE", "/v2/deployments/mine", key=key)
        assert (gone.status_code, gone.content) == (204, b"")
        missing = await plane.call("GET", "/v2/deployments/mine", key=key)
        assert (missing.status_code, missing.json()["code"]) == (404, "deployment_not_found")
        assert (await plane.call("POST", "/v2/deployments", DEDICATED, key=key)).status_code == 200

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_a_dedicated_deployment_is_compared_with_what_was_paid_by_the_token(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await plane.new_tenant("other")
        made = (await plane.call("POST", "/v2/deployments", DEDICATED, key=key)).json()["data"]
        none_yet = {"monthlyPrice": "883.3", "hours": 730, "replicas": 1, "meteredCost": "0", "meteredDays": 30}
        assert made["comparison"] == none_yet
        for number, (days, tenant) in enumerate(((31, "acme"), (29, "acme"), (0, "acme"), (0, "other"))):
            opened_ms = plane.control.now_ms()
            await insert_records(plane.control, [record(number, opened_ms=opened_ms, tenant=tenant)])
            plane.clock.advance((2 if days == 31 else days) * 86_400)
        async with plane.control.database.read() as connection:
            costs = list((await connection.execute(select(ledger.c.cost_nanousd))).scalars())
        assert costs[0] > 0
        change = {"config": {"minReplicas": 2}}
        changed = (await plane.call("PUT", "/v2/deployments/mine", change, key=key)).json()["data"]
        assert (changed["comparison"]["monthlyPrice"], changed["comparison"]["replicas"]) == ("1766.6", 2)
        assert changed["comparison"]["meteredCost"] == price_text(2 * costs[0])
        shared, mine = (await plane.call("GET", "/v2/deployments", key=key)).json()["data"]
        assert "comparison" not in shared
        assert mine == changed == (await plane.call("GET", "/v2/deployments/mine", key=key)).json()["data"]

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_what_cannot_be_deployed_is_refused_by_name(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        for field, value in {
            "baseModel": "gpt-9",
            "minReplicas": -1,
            "maxReplicas": 65,
            "cooldownTime": "long",
            "accelerator": "b200",
            "customArgs": ["x" * 70_000],
        }.items():
            body = {**DEDICATED, "config": {"baseModel": "Tiny-Base", field: value}}
            refused = await plane.call("POST", "/v2/deployments", body, key=key)
            assert (refused.status_code, refused.json()["code"]) == (422, "invalid_parameter"), field
        for base, said in {
            "Llama-2-70b": "Llama-2-70b takes 40.4 GiB with int4 weights, its smallest form, and one a10_24gb_100 has",
            "mixtral-8x7b-instruct": "Mixtral-8x7B-Instruct-v0.1 takes 27.3 GiB",
            "lama-2-7b": "did you mean Llama-2-7b",
        }.items():
            refused = await plane.call("POST", "/v2/deployments", {**DEDICATED, "config": {"baseModel": base}}, key=key)
            assert refused.status_code == 422
            assert said in refused.text, base
        for name in ("", "Upper", "a/b", "-x", "x" * 64):
            refused = await plane.call("POST", "/v2/deployments", {**DEDICATED, "name": name}, key=key)
            assert refused.status_code == 422, name
        shared = await plane.call("POST", "/v2/deployments", {**DEDICATED, "name": NAME}, key=key)
        assert shared.status_code == 409
        told = await plane.call("GET", "/v2/deployments/recommended-config?baseModel=zephyr-7b-beta", key=key)
        assert told.json()["baseModel"] == "Zephyr-7b-beta"
        assert (await plane.call("POST", "/v2/deployments", {"name": "z", "config": told.json()}, key=key)).is_success
        assert (await plane.call("GET", "/v2/deployments/recommended-config?baseModel=x", key=key)).status_code == 422
        assert (await plane.call("GET", "/v2/deployments/a%00b", key=key)).status_code == 404

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_request_logs_are_the_callers_own_requests(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await plane.new_tenant("other")
        now_ms = plane.control.now_ms()
        given = [
            record(1, opened_ms=now_ms, base="Tiny-Base"),
            record(2, opened_ms=now_ms, base="Tiny-Base", tenant="other"),
        ]
        given.append(record(3, opened_ms=now_ms - 5_000, base="Tiny-Base"))
        await insert_records(plane.control, given)

        async def logged(query: str = "") -> list[str]:
            reply = await plane.call("GET", f"/v2/deployments/{NAME}/request-logs{query}", key=key)
            assert reply.headers["content-type"] == "application/zip", reply.text
            with zipfile.ZipFile(io.BytesIO(reply.content)) as archive:
                return [json.loads(line)["request_id"] for line in archive.read("requests.jsonl").splitlines()]

        assert await logged() == [given[2].request_id, given[0].request_id]
        since = f"?from={(now_ms - 1) / 1000}"
        wrong = await plane.call("GET", f"/v2/deployments/{NAME}/request-logs{since}", key=key)
        assert "`from`" in wrong.json()["error"]["message"]  # where the SDK reads it, on this route
        unquoted = "?from=2000-01-01T00:00:00+00:00&to=2000-01-01T02:00:00.5+01:00"  # as the SDK sends it
        assert await logged(unquoted) == []
        assert await logged("?from=2000-01-01T00:00:00&to=2001-01-01T00:00:00") == []
        assert await logged("?adapterId=triage/2") == [given[2].request_id, given[0].request_id]
        assert await logged("?adapterId=other/1") == []

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


def test_the_account_and_what_is_not_built(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme", name="Acme", email="a@acme.example")
        for path in ("/users/current", "/v1/users/current"):
            user = (await plane.call("GET", path, key=key)).json()
            assert (user["username"], user["tenant"]["name"]) == ("a@acme.example", "Acme")
            assert user["tenant"]["shortCode"] == "acme"
            assert set(user["tenant"]["subscription"]) == {
                *("id", "tier", "isTrial", "expiration", "daysRemainingInPlan", "active")
            }
        unknown = await plane.call("GET", "/v1/users/current", key=None)
        assert (unknown.status_code, type(unknown.json()["error"])) == (401, str)
        llms = (await plane.call("GET", "/supported_llms", key=key)).json()
        assert (llms[0]["name"], llms[0]["isServed"], len(llms)) == ("Tiny-Base", True, 15)
        for adapted, is_so in (("mistralai/Mistral-7B-Instruct-v0.1", True), ("zephyr-7b-beta", False)):
            query = f"deploymentBaseModelName=Mistral-7b-instruct&adapterBaseModelName={adapted}"
            reply = await plane.call("GET", f"/llms/validate_adapter_compatibility?{query}", key=key)
            assert reply.json() == {"compatible": is_so}
        for path in ("/v2/finetuning/jobs", "/v2/datasets", "/v1/v2/secrets/x/y", "/v2/batch-inference"):
            absent = await plane.call("GET", path, key=key)
            assert (absent.status_code, "is not part of this server" in absent.json()["error"]) == (501, True)
        assert not [path for path in create_control_app(plane.control).openapi()["paths"] if "finetuning" in path]

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))
