"""Promotions and shadows over a control plane and a server: questions run as a batch, and shadows cost nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from manylora.adapter_ref import SourceName
from manylora.clock import SystemClock
from manylora.config.settings import Config
from manylora.control.app.application import create_control_app
from manylora.control.registry.repositories import create_repository, own_for_change
from manylora.control.registry.versions import VersionState, add_version
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.tenancy import DEFAULT_TENANT
from tests.server.batches.batch_house import BatchHouse, batch_house, when
from tests.server.storing import StoringPlane, storing_plane

REPO = "/v2/repos/triage"


@asynccontextmanager
async def registry_house(folder: Path) -> AsyncIterator[tuple[BatchHouse, httpx2.AsyncClient, Directory]]:
    """A server and its control plane, where a repository has two versions without files; and a caller of the latter."""
    clock, config = SystemClock(), Config()
    config = replace(config, batches=replace(config.batches, check_s=0.01))
    async with storing_plane(folder / "control", config, clock) as plane:
        await _versions(plane)
        directory = Directory(plane.client, clock, poll_s=60.0, max_age_s=600.0)
        await directory.refresh()
        access, sources = Access(clock, directory=directory), (SourceName.LOCAL, SourceName.PBASE)
        transport = httpx2.ASGITransport(create_control_app(plane.control), client=("127.0.0.1", 1))
        async with (
            batch_house(folder, plane=plane, access=access, clock=clock, sources=sources) as house,
            httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            yield house, client, directory


async def _versions(plane: StoringPlane) -> None:
    async with plane.control.database.write() as connection:
        await create_repository(connection, DEFAULT_TENANT, "triage", now_ms=1, most=9)
        found = await own_for_change(connection, DEFAULT_TENANT, "triage")
        for version in (1, 2):
            state = VersionState.READY
            await add_version(connection, found.number, version, state=state, created_by="x", now_ms=1)


@pytest.mark.long
def test_questions_run_as_a_batch_and_decide(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry_house(tmp_path) as (house, client, _):
            await house.app.start()
            lines = [{"prompt": "x", "expected": "from triage/2"}, {"prompt": "y", "expected": "Hello"}]
            body = {"metric": "contains", "questions": "\n".join(map(json.dumps, lines)), "guards": ["prod"]}
            assert (await client.put(f"{REPO}/evaluation", json=body)).status_code == 200
            for version, state in ((2, "promoted"), (1, "refused")):
                made = await client.post(f"{REPO}/aliases/prod/promotions", json={"version": version})
                assert made.status_code == 202, made.text
                path = f"{REPO}/promotions/{made.json()['id']}"

                async def is_over(path: str = path) -> bool:
                    return bool((await client.get(path)).json()["state"] != "running")

                await when(is_over)
                ended = (await client.get(path)).json()
                assert (ended["state"], ended["reason"] == "") == (state, version == 2), ended
            assert (await client.get(REPO)).json()["aliases"] == {"prod": 2}
            records = await house.shipped()
            assert {record.is_batch for record in records} == {True}
            assert all(record.charged_completion_tokens for record in records), "the tenant pays"

    asyncio.run(main())


def test_a_shadow_is_recorded_and_costs_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with registry_house(tmp_path) as (house, client, directory):
            body = {"weights": {"1": 100}, "shadow": 2}
            assert (await client.put(f"{REPO}/aliases/prod", json=body)).status_code == 200
            await directory.refresh()
            asked = {"model": "triage/prod", "prompt": "x", "max_tokens": 4}
            reply = await house.client.post("/v1/completions", json=asked)
            assert reply.json()["model"] == "triage/1"
            assert house.app.arms is not None
            await house.app.arms.idle()
            found = {record.adapter: record for record in await house.shipped()}
            answer, shadow = found["triage/1"], found["triage/2"]
            assert (answer.alias, answer.is_shadow, answer.charged_completion_tokens) == ("triage/prod", False, 4)
            assert (shadow.alias, shadow.is_shadow, shadow.completion_tokens) == ("triage/prod", True, 4)
            charged = (shadow.charged_prompt_tokens, shadow.charged_completion_tokens, shadow.charged_cached_tokens)
            assert charged == (0, 0, 0)

    asyncio.run(main())
