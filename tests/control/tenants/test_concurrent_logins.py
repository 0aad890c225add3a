"""Changes of one login at one time on PostgreSQL: each waits for the one before, and is answered by what that left."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select, text

from manylora.control.storage.tables import logins
from manylora.control.tenants import passwords
from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.support.waiting import PATIENCE_S

PASSWORD = "correct horse battery"
WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()")
RESET = "/v1/account/login/reset"


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "COST", 2)
    monkeypatch.setattr(passwords, "PARALLEL", 1)


async def held(plane: Plane, *calls: Any) -> list[int]:
    """Begin calls while another transaction holds the login; return their statuses, in ascending order."""
    async with plane.control.database.write() as connection:
        await connection.execute(select(logins).where(logins.c.tenant == "acme").with_for_update())
        tasks = [asyncio.create_task(call) for call in calls]
        give_up = time.monotonic() + PATIENCE_S
        waiting = 0
        while waiting < len(tasks) and not any(task.done() for task in tasks):
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
            async with plane.control.database.read() as other:  # each sees the activity of its own begin
                waiting = (await other.execute(WAITING)).scalar_one()
    return sorted([reply.status_code for reply in await asyncio.gather(*tasks)])


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_of_two_resets_with_one_code_one_gets_the_answer_of_a_used_code(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        await plane.new_tenant("acme")
        code = (await plane.call("POST", "/admin/tenants/acme/login-code")).json()["code"]
        body = {"tenant": "acme", "password": PASSWORD, "code": code}
        assert await held(plane, *(plane.call("POST", RESET, body, key=None) for _ in range(2))) == [201, 401]
        assert (await plane.call("POST", RESET, body, key=None)).status_code == 401

    in_plane(url, tmp_path, scenario)


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_two_passwords_at_one_time_are_set_one_after_the_other(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        path, words = "/v1/account/login", (PASSWORD, PASSWORD[::-1])
        assert (await plane.call("PUT", path, {"password": PASSWORD}, key=key)).status_code == 200
        assert await held(plane, *(plane.call("PUT", path, {"password": each}, key=key) for each in words)) == [200] * 2

    in_plane(url, tmp_path, scenario)
