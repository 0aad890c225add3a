"""Files and batches of several tenants: isolation, scopes, quotas, limits, closed tenants."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from manylora.clock import ManualClock, SystemClock
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.tenancy import (
    KeyFacts,
    Limits,
    Scope,
    Snapshot,
    TenantFacts,
    TenantState,
    hash_secret,
    mint_key,
    split_key,
)
from tests.server.batches.batch_house import COMPLETIONS, BatchHouse, batch_house, jsonl, line, soon, when
from tests.server.fake_control import PEPPER, FakeControl

ACME, OTHER = TenantId("acme"), TenantId("other")


class Keys:
    """An edge with keys: one of each tenant with all a customer's scopes, and one of `acme` that only reads."""

    def __init__(self, *, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.texts: dict[str, str] = {}
        self.facts: dict[str, KeyFacts] = {}
        for name, tenant, scopes in (
            ("acme", ACME, (Scope.INFER, Scope.READ)),
            ("other", OTHER, (Scope.INFER, Scope.READ)),
            ("reader", ACME, (Scope.READ,)),
        ):
            key_id, self.texts[name] = mint_key()
            parts = split_key(self.texts[name])
            assert parts is not None
            secret = hash_secret(PEPPER, parts[1])
            self.facts[name] = KeyFacts(
                id=key_id, origin=key_id, tenant=tenant, secret_hash=secret, scopes=(), granted=scopes
            )

    def snapshot(self, *, state: TenantState = TenantState.ACTIVE, revoked: tuple[str, ...] = ()) -> Snapshot:
        return Snapshot(
            revision=1,
            taken_ms=0,
            is_whole=True,
            pepper=PEPPER,
            tenants=(TenantFacts(id=ACME, state=state, limits=self.limits), TenantFacts(id=OTHER)),
            keys=tuple(facts for name, facts in self.facts.items() if name not in revoked),
        )

    async def access(self, control: FakeControl) -> Access:
        control.snapshot_ = self.snapshot()
        directory = Directory(control, SystemClock(), poll_s=60, max_age_s=600)
        await directory.refresh()
        return Access(SystemClock(), is_key_needed=True, directory=directory)

    def __call__(self, name: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.texts[name]}"}


async def order(house: BatchHouse, headers: dict[str, str], lines: list[Any]) -> str:
    body = {
        "input_file_id": await house.upload(jsonl(lines), **headers),
        "endpoint": COMPLETIONS,
        "completion_window": "24h",
    }
    reply = await house.client.post("/v1/batches", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


async def ended(house: BatchHouse, headers: dict[str, str], batch_id: str) -> dict[str, Any]:
    async def has_ended() -> bool:
        found = (await house.client.get(f"/v1/batches/{batch_id}", headers=headers)).json()
        return found["status"] in ("completed", "failed", "cancelled", "expired")

    await when(has_ended)
    return dict((await house.client.get(f"/v1/batches/{batch_id}", headers=headers)).json())


def test_a_tenant_sees_its_own_files_and_batches_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys, control = Keys(), FakeControl()
        async with batch_house(tmp_path, control=control, access=await keys.access(control)) as house:
            batch_id = await order(house, keys("acme"), [line("a")])
            batch = await ended(house, keys("acme"), batch_id)
            assert batch["request_counts"]["completed"] == 1
            paths = [f"/v1/files/{batch[f'{kind}_file_id']}" for kind in ("input", "output")]
            paths += [f"{path}/content" for path in paths] + [f"/v1/batches/{batch_id}"]
            for path in paths:
                assert (await house.client.get(path, headers=keys("acme"))).status_code == 200
                reply = await house.client.get(path, headers=keys("other"))
                assert (reply.status_code, reply.json()["error"]["code"]) == (404, "resource_not_found")
            changes = [("POST", f"/v1/batches/{batch_id}/cancel"), ("DELETE", paths[0])]
            for method, path in changes:
                assert (await house.client.request(method, path, headers=keys("other"))).status_code == 404
            for path in ("/v1/files", "/v1/batches"):
                assert (await house.client.get(path, headers=keys("other"))).json()["data"] == []
            body = {"input_file_id": batch["input_file_id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
            assert (await house.client.post("/v1/batches", json=body, headers=keys("other"))).status_code == 404
            assert {record.tenant for record in await house.shipped()} == {ACME}

    asyncio.run(scenario())


def test_a_key_that_reads_sees_lists_and_no_content(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys, control = Keys(), FakeControl()
        async with batch_house(tmp_path, control=control, access=await keys.access(control)) as house:
            file_id = await house.upload(jsonl([line("a")]), **keys("acme"))
            for path in ("/v1/files", "/v1/batches", f"/v1/files/{file_id}"):
                assert (await house.client.get(path, headers=keys("reader"))).status_code == 200
            forbidden = [("GET", f"/v1/files/{file_id}/content"), ("DELETE", f"/v1/files/{file_id}")]
            for method, path in (*forbidden, ("POST", "/v1/files"), ("POST", "/v1/batches")):
                assert (await house.client.request(method, path, headers=keys("reader"))).status_code == 403
            assert (await house.client.get("/v1/files")).status_code == 401

    asyncio.run(scenario())


def test_lines_of_a_revoked_key_fail_by_its_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys, control = Keys(), FakeControl()
        access = await keys.access(control)
        async with batch_house(tmp_path, control=control, access=access) as house:
            file_id = await house.upload(jsonl([line("a")]), **keys("acme"))
            body = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
            batch_id = (await house.client.post("/v1/batches", json=body, headers=keys("acme"))).json()["id"]
            control.snapshot_ = keys.snapshot(revoked=("acme",))
            assert access.directory is not None
            await access.directory.refresh()
            batch = await ended(house, keys("reader"), batch_id)
            assert batch["request_counts"]["failed"] == 1
            assert [blob for blob in house.plane.blobs() if b'"invalid_api_key"' in blob]

    asyncio.run(scenario())


def test_everything_of_a_closed_tenant_is_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        keys, control = Keys(), FakeControl()
        access = await keys.access(control)
        async with batch_house(tmp_path, control=control, access=access) as house:
            await ended(house, keys("acme"), await order(house, keys("acme"), [line("a")]))
            await order(house, keys("acme"), [line("held", "WAIT")])
            kept = await house.upload(b"{}", **keys("other"))
            control.snapshot_ = keys.snapshot(state=TenantState.CLOSED)
            assert access.directory is not None
            await access.directory.refresh()
            await house.plane.close_tenant(ACME)
            await when(lambda: soon(not house.engine.live))
            await house.plane.sweep()
            assert house.plane.blobs() == [b"{}"]
            assert (await house.client.get(f"/v1/files/{kept}", headers=keys("other"))).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "storage", [{"tenant_files": 1}, {"tenant_bytes": 300}, {"max_file_bytes": 200}], ids=["files", "bytes", "size"]
)
def test_uploads_are_bounded_and_leave_nothing_when_refused(tmp_path: Path, storage: dict[str, int]) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path, storage=storage) as house:
            first = await house.upload(b"x" * 150)
            form: dict[str, Any] = {"files": {"file": ("in.jsonl", b"x" * 250)}, "data": {"purpose": "batch"}}
            reply = await house.client.post("/v1/files", **form)
            assert reply.status_code in (403, 413)
            (setting,) = storage
            assert f"storage.{setting}" in reply.json()["error"]["message"]
            assert len(house.plane.blobs()) == 1
            await house.client.delete(f"/v1/files/{first}")
            assert (await house.client.get(f"/v1/files/{first}")).status_code == 404
            await house.upload(b"x" * 150)

    asyncio.run(scenario())


@pytest.mark.long
def test_a_batch_ends_with_its_results_when_the_bytes_of_its_tenant_are_used_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        lines = [line(str(number)) for number in range(30)]
        room = len(jsonl(lines)) + 1_000
        settings: dict[str, Any] = {"storage": {"tenant_bytes": room}, "batches": {"lines_at_once": 1}}
        async with batch_house(tmp_path, **settings) as house:
            batch = await house.until(await house.create(lines))
            assert batch["status"] == "failed"
            assert batch["errors"]["data"][0]["code"] == "storage_limit_exceeded"
            good = await house.results(batch["output_file_id"])
            assert 0 < len(good) == batch["request_counts"]["completed"] < 30

    asyncio.run(scenario())


@pytest.mark.long
def test_a_batch_whose_last_result_takes_the_last_bytes_of_its_tenant_is_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        lines = [line("a")]
        settings: dict[str, Any] = {"batches": {"lines_at_once": 1}}
        async with batch_house(tmp_path, storage={"tenant_bytes": len(jsonl(lines)) + 1}, **settings) as house:
            batch = await house.until(await house.create(lines))
            assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 1)

    asyncio.run(scenario())


def test_a_tenant_has_so_many_batches_until_their_retention_is_over(tmp_path: Path) -> None:
    async def scenario() -> None:
        clock = ManualClock()
        settings: dict[str, Any] = {"storage": {"retention_s": 100.0}, "batches": {"tenant_batches": 1}}
        async with batch_house(tmp_path, clock=clock, **settings) as house:
            batch = await house.until(await house.create([line("a")]))
            body = {"input_file_id": batch["input_file_id"], "endpoint": COMPLETIONS, "completion_window": "24h"}
            refused = await house.client.post("/v1/batches", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "storage_limit_exceeded")
            clock.advance(101)
            await house.plane.sweep()
            assert (await house.client.get("/v1/batches")).json()["data"] == []
            assert (await house.client.get("/v1/files")).json()["data"] == []
            assert house.plane.blobs() == []

    asyncio.run(scenario())


def test_the_input_of_a_batch_under_way_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            batch = await house.batch(await house.create([line("held", "WAIT")]))
            reply = await house.client.delete(f"/v1/files/{batch['input_file_id']}")
            assert reply.status_code == 400
            assert batch["id"] in reply.json()["error"]["message"]

    asyncio.run(scenario())
