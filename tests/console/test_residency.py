"""The places of adapters in the engines as pages show them: one tier for several versions, and the map of a fleet."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from manylora.console.figures import ago
from manylora.console.residency import heat_map, states_of, together
from manylora.console.visitors import Visitor
from tests.console.house import PASSWORD, ConsoleHouse, in_console, text_of
from tests.console.test_pages import upload
from tests.control.uploading import base_settings


def adapter(name: str, state: str, *, hits: int = 0, **facts: Any) -> dict[str, Any]:
    return {"id": name, "state": state, "hits": hits, "last_use_s": None, "base": "tiny", "replicas": {}, **facts}


def test_the_map_has_a_column_for_each_replica_and_the_nearest_adapters_first() -> None:
    replicas, rows = heat_map(
        [
            adapter("cold", "on_disk", replicas={"two": "on_disk"}),
            adapter("hot", "on_device", replicas={"one": "on_device", "two": "on_disk"}),
            adapter("hotter", "on_device", hits=3, replicas={"two": "on_device"}),
        ]
    )
    assert replicas == ["one", "two"]
    assert [(row["id"], row["at"]) for row in rows] == [
        ("hotter", ["absent", "on_device"]),
        ("hot", ["on_device", "on_disk"]),
        ("cold", ["absent", "on_disk"]),
    ]


def test_engines_without_a_fleet_are_columns_by_their_base() -> None:
    replicas, rows = heat_map(
        [adapter("a", "on_device"), adapter("b", "failed", base="small"), adapter("c", "absent", base="")]
    )
    assert replicas == ["engine", "small", "tiny"]
    assert rows[0]["at"] == ["absent", "absent", "on_device"]
    assert heat_map([]) == ([], [])


def test_several_versions_have_the_nearest_tier_and_the_last_use() -> None:
    one, other = adapter("a/1", "on_disk", last_use_s=3.0), adapter("a/2", "on_device", last_use_s=9.0)
    assert together([one, other]) == {"state": "on_device", "last_use_s": 3.0}
    assert together([adapter("a/1", "absent")]) == {"state": "absent", "last_use_s": None}
    assert together([]) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s ago"), (59.9, "59 s ago"), (60, "1 min ago"), (7_200, "2 h ago"), (90_000.0, "1 d ago")],
)
def test_the_time_since_a_use_has_one_unit(seconds: float | None, text: str) -> None:
    assert ago(seconds) == text


@pytest.mark.usefixtures("checks_in_process")
def test_pages_without_an_engine_leave_places_out_and_the_operator_sees_every_deployment(tmp_path: Path) -> None:
    async def scenario(house: ConsoleHouse) -> None:
        browser, operator = house.new_browser(), house.new_browser()
        await browser.sign_up("acme")
        await upload(browser, "triage", "prod")
        key = browser.client.cookies["manylora_session"]
        wanted = {"name": "ours", "config": {"baseModel": "Tiny-Base"}}
        assert (await house.plane.call("POST", "/v2/deployments", wanted, key=key)).status_code == 200
        for path in ("/adapters", "/adapters/acme/triage", "/adapters/acme/triage/1"):
            page = await browser.get(f"/console{path}")
            assert page.status_code == 200
            assert "on device" not in page.text
        assert (await house.plane.call("GET", "/admin/deployments", key=key)).status_code == 403
        await house.plane.call("PUT", "/v1/account/login", {"password": PASSWORD})
        await operator.sign_in("operator")
        fleet = text_of((await operator.get("/console/operator/fleet")).text)
        assert "acme/ours" in fleet
        assert "runs no engine" in fleet

    in_console(tmp_path, scenario, settings=base_settings(tmp_path))


def test_no_visitor_asks_for_another_tenant_s_places() -> None:
    class NoApi:
        async def ask(self, *_: object, **__: object) -> None:
            raise AssertionError("this visitor may not know it")

    async def ask() -> dict[str, Any]:
        return dict(await states_of(NoApi(), Visitor(tenant="rival"), "acme", ["triage/1"]))  # type: ignore[arg-type]  # no call comes

    assert asyncio.run(ask()) == {}
