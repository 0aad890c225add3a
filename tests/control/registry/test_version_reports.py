"""The ingest report of an upload: stored with its version, told to its owner and the operator, gone with it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, select

from manylora.control.storage.tables import version_reports
from tests.control.plane import Plane, Scenario, in_plane
from tests.control.uploading import ATTENTION, PLAIN, base_settings, new_repo, upload

pytestmark = pytest.mark.usefixtures("checks_in_process")

PATH = "/v2/repos/triage/version/1"


def run(url: URL, folder: Path, scenario: Scenario, **settings: Any) -> None:  # settings of several types
    in_plane(url, folder, scenario, settings=base_settings(folder, **settings))


NARROW = ATTENTION.with_config({**ATTENTION.fields, "target_modules": ["q_proj"]})


async def report_at(plane: Plane, path: str, key: str) -> Any:  # the reply's JSON
    reply = await plane.call("GET", path, key=key)
    assert reply.status_code == 200, reply.text
    return reply.json()["report"]


def test_it_is_told_with_the_version(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key, other = await plane.new_tenant("acme"), await plane.new_tenant("globex")
        await new_repo(plane, key)
        assert (await upload(plane, key, "triage", NARROW)).status_code == 200
        report = await report_at(plane, PATH, key)
        assert (report["num_applied"], report["num_left_out"]) == (6, 18)
        assert "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight" in report["left_out_names"]
        assert [group["layers"] for group in report["applied"]] == ["0-2"]
        assert report["base"] == {"declared": "org/tiny", "served": "Tiny-Base", "is_same": False}
        assert await report_at(plane, "/admin/repos/acme/triage/version/1", plane.admin_key) == report
        versions = (await plane.call("GET", "/v2/repos/triage", key=key)).json()["versions"]
        assert all("report" not in each for each in versions)
        await plane.call("POST", "/v2/repos/triage/shares", {"tenants": ["globex"]}, key=key)
        assert await report_at(plane, f"{PATH}?owner=acme", other) is None
        await plane.call("DELETE", PATH, key=key)
        async with plane.control.database.read() as connection:
            assert (await connection.execute(select(version_reports))).all() == []

    run(url, tmp_path, scenario)


def test_a_version_without_one_has_null(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        await upload(plane, key, "triage", PLAIN)
        async with plane.control.database.write() as connection:
            await connection.execute(version_reports.delete())
        assert await report_at(plane, PATH, key) is None
        async with plane.control.database.write() as connection:
            row = {"repository": 1, "version": 1, "report": '{"applied": 3}'}
            await connection.execute(version_reports.insert().values(row))
        assert await report_at(plane, PATH, key) is None

    run(url, tmp_path, scenario)


def test_the_settings_of_adapters_hold_for_uploads(url: URL, tmp_path: Path) -> None:
    async def scenario(plane: Plane) -> None:
        key = await plane.new_tenant("acme")
        await new_repo(plane, key)
        refused = await upload(plane, key, "triage", NARROW)
        assert (refused.status_code, refused.json()["code"]) == (422, "adapter_unsupported")
        assert "adapters.strict" in refused.json()["error"]
        listed = PLAIN.with_config({**PLAIN.fields, "newest_trick": 1})
        assert (await upload(plane, key, "triage", listed)).status_code == 200
        assert (await report_at(plane, PATH, key))["harmless_fields"] == ["newest_trick"]
        other = PLAIN.with_config({**PLAIN.fields, "another_trick": 1})
        assert "another_trick" in (await upload(plane, key, "triage", other)).json()["error"]

    run(url, tmp_path, scenario, **{"adapters.strict": True, "adapters.harmless_fields": ["newest_trick"]})
