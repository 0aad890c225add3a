"""Changes of one deployment at one time on PostgreSQL: each is made to what the one before it has left."""

from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.conftest import long
from tests.control.plane import Plane, in_plane
from tests.control.queued_calls import in_turn
from tests.control.uploading import base_settings

CONFIG = {"baseModel": "mistralai/Mistral-7B-Instruct-v0.1", "maxReplicas": 1, "cooldownTime": 600}
PATH = "/v2/deployments/mine"


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_two_changes_at_one_time_undo_nothing_of_each_other(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        made = await plane.call("POST", "/v2/deployments", {"name": "mine", "config": CONFIG}, key=key)
        assert made.status_code == 200, made.text
        given = ({"maxReplicas": 2}, {"cooldownTime": 900})
        changes = (partial(plane.call, "PUT", PATH, {"config": config}, key=key) for config in given)
        assert [reply.status_code for reply in await in_turn(plane, *changes)] == [200, 200]
        config = (await plane.call("GET", PATH, key=key)).json()["data"]["config"]
        assert (config["maxReplicas"], config["cooldownTime"]) == (2, 900)
        rows = (await plane.call("GET", "/admin/audit?tenant=acme&verb=change")).json()["audit"]
        assert [row["before"]["max_replicas"] for row in rows] == [2, 1]

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))


@pytest.mark.parametrize("url", long("postgresql"), indirect=True)
def test_of_two_deletions_at_one_time_one_finds_nothing(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        made = await plane.call("POST", "/v2/deployments", {"name": "mine", "config": CONFIG}, key=key)
        assert made.status_code == 200, made.text
        deletions = [partial(plane.call, "DELETE", PATH, key=key)] * 2
        assert [reply.status_code for reply in await in_turn(plane, *deletions)] == [204, 404]

    in_plane(url, tmp_path, scenario, settings=base_settings(tmp_path))
