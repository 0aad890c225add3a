"""Limits of single bases over HTTP, on an edge of two."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterInfo, AdapterState
from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.app.application import create_app
from manylora.tenancy import DEFAULT_TENANT, BaseLimits, Limits, Snapshot, TenantFacts
from tests.server.fake_control import PEPPER, FakeControl
from tests.server.started_bases import started_bases


async def access_of(limits: Limits) -> Access:
    """The access check of an open edge on which the default tenant has limits."""
    clock, tenants = ManualClock(), (TenantFacts(id=DEFAULT_TENANT, limits=limits),)
    snapshot = Snapshot(revision=0, taken_ms=0, is_whole=True, pepper=PEPPER, tenants=tenants)
    directory = Directory(FakeControl(snapshot), clock, poll_s=60.0, max_age_s=600.0)
    await directory.refresh()
    return Access(clock, directory=directory)


def test_a_base_at_its_limit_is_refused_by_name_while_the_other_serves(tmp_path: Path) -> None:
    async def main() -> None:
        own = BaseLimits(base="org/small", requests_per_minute=1, tokens_per_minute=90, concurrent_streams=1)
        access = await access_of(Limits(requests_per_minute=8, bases=(own,)))
        plan = tmp_path / "adapters" / "plan"
        plan.mkdir(parents=True)
        (plan / "adapter_config.json").write_text("{}")
        (plan / "adapter_model.safetensors").write_text("{}")
        async with started_bases(tmp_path, Config()) as ((small, _), started):
            app = create_app(Config(), started, access=access)
            transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]  # ASGI's types differ by library
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=20) as client:

                async def ask(model: str, **more: Any) -> httpx2.Response:
                    body = {"model": model, "prompt": "SAY:a", "max_tokens": 8, **more}
                    return await client.post("/v1/completions", json=body)

                served = await ask("small", n=3)  # in waves of one
                assert (served.status_code, len(served.json()["choices"])) == (200, 3)
                assert served.headers["x-ratelimit-limit-requests"] == "1"  # the bucket nearest to empty
                for _ in range(3):
                    refused = await ask("org/small")
                    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
                    assert "1 requests per minute (tenant default, base org/small)" in refused.text
                small.texts.asked.clear()
                assert (await ask("small/plan")).status_code == 429
                assert small.texts.asked == []  # an engine that is asked would fetch a remote adapter
                assert [(await ask("large")).status_code for _ in range(4)] == [200, 200, 200, 429]
            assert len(small.submitted) == 3
            await app.admission.emptied()
            app.close()

    asyncio.run(main())


def test_a_base_that_its_adapter_alone_names_is_charged_before_any_engine_once_it_is_known(tmp_path: Path) -> None:
    async def main() -> None:
        access = await access_of(Limits(bases=(BaseLimits(base="org/small", requests_per_minute=1),)))
        async with started_bases(tmp_path, Config()) as ((small, large), started):
            for name in ("team/plan", "team/late"):
                report = {"base": {"declared": "org/small"}}
                info = AdapterInfo(id=name, source="hub", state=AdapterState.ON_DISK, report=report)
                small.adapters.known[AdapterRef(SourceName.HUB, name)] = info
            app = create_app(Config(), started, access=access)
            transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]  # ASGI's types differ by library
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=20) as client:

                async def asked(name: str) -> tuple[int, int]:
                    """Return the status of a request, and the number of engines that it asks."""
                    small.texts.asked.clear()
                    body = {"prompt": "SAY:a", "adapter_id": name, "adapter_source": "hub"}
                    reply = await client.post("/v1/completions", json=body)
                    return reply.status_code, len(small.texts.asked) + len(large.texts.asked)

                assert await asked("team/plan") == (200, 1)
                assert await asked("team/plan") == (429, 0)
                assert await asked("team/late") == (429, 1)  # nothing but its files names the base
                assert await asked("team/late") == (429, 0)
            assert len(small.submitted) == 1
            await app.admission.emptied()
            app.close()

    asyncio.run(main())
