"""Adapters registered from a source: copied in the background, checked like an upload."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, update

from manylora.adapters.ingest.checking import CheckedFiles, CheckJob, check_apart
from manylora.adapters.sources.upload_folders import Registry
from manylora.control.edges.snapshot import take_snapshot
from manylora.control.process.janitor import Janitor
from manylora.control.registry import check_queue as turns_module
from manylora.control.registry import intake as intake_module
from manylora.control.registry.intake import INTERRUPTED_S
from manylora.control.storage.tables import versions
from tests.adapters.fake_hub import HttpServer, Repository
from tests.control.plane import Plane, Scenario, in_plane
from tests.control.uploading import ATTENTION, PLAIN, base_settings, new_repo, upload
from tests.support.waiting import PATIENCE_S

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLAIN_FILES = {CONFIG: PLAIN.config, WEIGHTS: PLAIN.weights}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "files").mkdir()
    server = HttpServer(tmp_path / "files")
    yield server
    server.close()


def run(url: URL, folder: Path, server: HttpServer, scenario: Scenario, **settings: Any) -> None:
    own = {
        "adapters.hub_endpoint": f"http://127.0.0.1:{server.port}",
        "adapters.stores": (f"http://127.0.0.1:{server.port}/files",),
    }
    in_plane(url, folder, scenario, settings=base_settings(folder, **(own | settings)))


async def ended(plane: Plane, key: str, told: dict[str, Any]) -> dict[str, Any]:  # the replies' JSON
    """Wait until a version is ready or has failed."""
    async with asyncio.timeout(PATIENCE_S):
        while told["state"] == "uploading":
            await asyncio.sleep(0.05)  # a question takes 5 ms of CPU beside the check that it waits for
            told = (await plane.call("GET", f"/v2/repos/triage/version/{told['tag']}", key=key)).json()
    return told


async def copied(plane: Plane, key: str, **body: Any) -> dict[str, Any]:  # the reply's JSON
    """Register, and wait until it is ready or has failed."""
    begun = await plane.call("POST", "/v2/repos/triage/versions", body, key=key)
    assert begun.status_code == 202, begun.text
    told: dict[str, Any] = begun.json()
    assert (told["state"], told["status"], told["adapterPath"]) == ("uploading", "pending", "")
    return await ended(plane, key, told)


def test_a_copy_becomes_a_version_once_it_has_been_checked(url: URL, tmp_path: Path, server: HttpServer) -> None:
    server.repositories["org/tone"] = Repository(token="hf_secret")
    server.repositories["org/tone"].push(PLAIN_FILES)
    ATTENTION.save(tmp_path / "files" / "far")

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        first = await copied(plane, key, adapter_id="org/tone", api_token="hf_secret")
        second = await copied(plane, key, adapter_id="far", adapter_source="https")
        assert [(each["tag"], each["state"], each["rank"]) for each in (first, second)] == [
            (1, "ready", 2),
            (2, "ready", 4),
        ]
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == (1, 2)
        assert Registry(plane.control.registry_dir).files("acme", "triage", 1)[1].read_bytes() == PLAIN.weights
        shown = (await plane.call("GET", "/v2/repos/triage", key=key)).text
        assert "hf_secret" not in shown
        assert (await upload(plane, key, "triage")).json()["tag"] == 3

    run(url, tmp_path, server, scenario)


@pytest.mark.long
def test_a_copy_that_fails_says_why_and_keeps_its_number(url: URL, tmp_path: Path, server: HttpServer) -> None:
    server.repositories["org/broken"] = Repository()
    server.repositories["org/broken"].push({CONFIG: PLAIN.config, WEIGHTS: PLAIN.weights[:-3]})
    server.repositories["org/large"] = Repository()
    server.repositories["org/large"].push({CONFIG: PLAIN.config, WEIGHTS: PLAIN.weights + b"x" * 90_000})
    server.repositories["org/private"] = Repository(token="hf_secret")
    server.repositories["org/private"].push(PLAIN_FILES)

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        names = {"org/broken": "describes", "org/large": "limit", "org/private": "not found", "org/none": "not found"}
        for number, (name, text) in enumerate(names.items(), start=1):
            told = await copied(plane, key, adapter_id=name)
            assert (told["tag"], told["state"], told["status"]) == (number, "failed", "errored"), told
            assert text in told["finetuningJob"]["error"], told
        assert (await take_snapshot(plane.control, -1)).repositories[0].versions == ()
        assert list(plane.control.registry_dir.glob(".incoming-*")) == []
        shown = (await plane.call("GET", "/v2/repos/triage", key=key)).json()
        assert (shown["versions"], [each["tag"] for each in shown["unfinished"]]) == ([], [1, 2, 3, 4])
        for wrong in (
            {"adapter_id": "../x"},
            {"adapter_id": "x", "adapter_source": "local"},
            {"adapter_id": "s3://b/x"},
        ):
            refused = await plane.call("POST", "/v2/repos/triage/versions", wrong, key=key)
            assert (refused.status_code, refused.json()["code"]) == (422, "adapter_reference_invalid")

    run(url, tmp_path, server, scenario, **{"adapters.max_bytes": 50_000})


def test_a_copy_that_was_interrupted_is_told(url: URL, tmp_path: Path, server: HttpServer) -> None:
    server.repositories["org/tone"] = Repository()
    server.repositories["org/tone"].push(PLAIN_FILES)

    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        await copied(plane, key, adapter_id="org/tone")
        async with plane.control.database.write() as connection:  # as a kill in the middle leaves it
            await connection.execute(update(versions).values(state="uploading"))
        plane.clock.advance(INTERRUPTED_S - 1)
        await Janitor(plane.control).round()
        assert (await plane.call("GET", "/v2/repos/triage/version/1", key=key)).json()["state"] == "uploading"
        plane.clock.advance(2)
        await Janitor(plane.control).round()
        old = (await plane.call("GET", "/v2/repos/triage/version/1", key=key)).json()
        assert (old["state"], "register it again" in old["finetuningJob"]["error"]) == ("failed", True)
        assert (await copied(plane, key, adapter_id="org/tone"))["tag"] == 2

    run(url, tmp_path, server, scenario)


@pytest.mark.long
def test_copies_of_one_tenant_wait_for_each_other_in_a_queue_with_an_end(
    url: URL, tmp_path: Path, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("org/busy", "org/other"):
        server.repositories[name] = Repository()
        server.repositories[name].push(PLAIN_FILES)
    monkeypatch.setattr(turns_module, "MAX_OF_ONE", 3)

    async def scenario(plane: Plane) -> None:
        busy, other = await plane.new_tenant("busy"), await plane.new_tenant("other")
        for key in (busy, other):
            await new_repo(plane, key)
        going, under_way, most = asyncio.Event(), 0, 0

        async def checked(job: CheckJob, timeout_s: float) -> CheckedFiles:
            nonlocal under_way, most
            if job.id == "org/busy":
                under_way += 1
                most = max(most, under_way)
                await going.wait()
                under_way -= 1
            return await check_apart(job, timeout_s)

        monkeypatch.setattr(intake_module, "check_apart", checked)
        path, body = "/v2/repos/triage/versions", {"adapter_id": "org/busy"}
        replies = [await plane.call("POST", path, body, key=busy) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [202, 202, 202, 429]
        assert (replies[3].json()["code"], replies[3].headers["retry-after"]) == ("rate_limit_exceeded", "5")
        assert (await copied(plane, other, adapter_id="org/other"))["state"] == "ready"
        assert (await upload(plane, busy, "triage")).json()["tag"] == 4
        going.set()
        assert [(await ended(plane, busy, reply.json()))["state"] for reply in replies[:3]] == ["ready"] * 3
        assert (await copied(plane, busy, adapter_id="org/busy"))["tag"] == 5  # the queue is served in its order
        told = (await take_snapshot(plane.control, -1)).repositories
        assert {each.owner: each.versions for each in told} == {"busy": (1, 2, 3, 4, 5), "other": (1,)}
        assert most == 1

    run(url, tmp_path, server, scenario)
