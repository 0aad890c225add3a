"""Pushes over HTTP, at one server and at two of one control plane: who may push for whom, and what ends a push."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save

from manylora.adapter_state import AdapterAction
from manylora.clock import ManualClock, SystemClock
from manylora.config.settings import Config
from manylora.errors import AdapterCorrupt, ControlUnavailable
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.server.pushing import pusher
from manylora.tenancy import Snapshot, TenantFacts
from tests.conftest import long
from tests.server.app.test_server_process import forked_server
from tests.server.batches.batch_house import BatchHouse, batch_house, soon, when
from tests.server.conftest import House
from tests.server.fake_control import PEPPER, FakeControl
from tests.server.storing import storing_plane

BYTES = {"content-type": "application/octet-stream"}
PATH = "/acme/deployments/v2/llms/tiny/v1/adapters/tone/tensors"
Houses = tuple[BatchHouse, ...]


def body_of(number: int = 0) -> bytes:
    return save({"weight": torch.full((2,), float(number))}, metadata={"adapter_config.json": "{}"})


async def push(house: BatchHouse, number: int = 0, path: str = PATH) -> httpx2.Response:
    return await house.client.post(path, content=body_of(number), headers=BYTES)


async def served(house: BatchHouse, tenant: str = "acme", **more: str) -> str:
    """The id of the adapter with which a request for `tone` runs, or the code of its refusal."""
    more = more or {"adapter_source": "pushed"}  # the engine under test knows every local name
    body = {"inputs": "SAY:hi", "parameters": {"adapter_id": "tone", **more}}
    reply = await house.client.post(f"/{tenant}/deployments/v2/llms/tiny/generate", json=body)
    return reply.headers["x-adapter-id"] if reply.status_code == 200 else str(reply.json()["code"])


async def pushed(house: BatchHouse, number: int = 0) -> str:
    """Push, and return the id of the adapter."""
    reply = await push(house, number)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["id"])


def copies(house: BatchHouse) -> list[Path]:
    names = house.app.pusher._names
    assert names is not None
    try:
        return sorted(names.copies.root.glob("*/*/*"))
    except FileNotFoundError:  # one goes at this moment
        return copies(house)


def deleted(house: BatchHouse) -> list[str]:
    return [ref.id for action, ref in house.engine.adapters.asked if action is AdapterAction.DELETE]


@asynccontextmanager
async def open_edges(folder: Path, names: tuple[str, ...], **options: Any) -> Any:
    """Servers of one control plane, whose folders are below `folder`."""
    clock, limits = options.pop("clock", ManualClock()), options.pop("limits", {})
    config = replace(Config(), adapters=replace(Config().adapters, **limits))
    async with AsyncExitStack() as stack:
        plane = await stack.enter_async_context(storing_plane(folder / "control", config, clock))
        houses = []
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            given = {"pushed_dir": str(folder / name / "pushed"), **limits}
            house = batch_house(folder / name, plane=plane, clock=clock, adapters=given, **options)
            houses.append(await stack.enter_async_context(house))
        yield tuple(houses)


def in_edges(
    folder: Path, scenario: Callable[..., Awaitable[None]], names: tuple[str, ...] = ("one", "two"), **options: Any
) -> None:
    async def main() -> None:
        async with open_edges(folder, names, **options) as houses:
            await scenario(*houses)

    asyncio.run(main())


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced push has no time in which earlier requests may begin with it."""
    monkeypatch.setattr(pusher, "GRACE_S", 0.0)


def test_a_push_at_one_server_is_served_by_both_from_its_reply_on(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        assert await served(two) == "adapter_not_found"
        versions = []
        for number, (at, other) in enumerate([(one, two), (two, one), (one, two)]):
            versions.append(await pushed(at, number))
            asked = [{"adapter_source": "pushed"}, {"api_token": ""}]
            found = {await served(house, **more) for house in (other, at) for more in asked}
            assert found == {versions[-1]}
        assert len(set(versions)) == 3
        for house in (one, two):
            assert await served(house, "globex") == "adapter_not_found"
            listed = (await house.client.get("/acme/deployments/v2/llms/tiny/v1/models")).json()["data"]
            assert "tone" in {model["id"] for model in listed}
            await when(lambda house=house: soon(len(copies(house)) == 1))  # type: ignore[misc]
        assert len(one.plane.blobs()) == 1
        assert (await two.client.delete(PATH)).status_code == 200
        assert await served(one) == await served(two) == "adapter_not_found"
        assert (await one.client.delete(PATH)).status_code == 404
        await when(lambda: soon(copies(one) == copies(two) == []))
        assert one.plane.blobs() == []

    in_edges(tmp_path, scenario)


@pytest.mark.parametrize("count", [8, *long(100)])
def test_many_pushes_leave_one_copy_at_each_server(tmp_path: Path, count: int) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        for number in range(count):
            assert (await push((one, two)[number % 2], number)).status_code == 200
            await served(two)
        last = await served(one)
        assert await served(two) == last
        for house, least in ((one, count // 2 - 1), (two, count - 1)):  # the first one has its own pushes, and the last
            await when(lambda house=house: soon(len(copies(house)) == 1))  # type: ignore[misc]
            await when(lambda house=house: soon(not house.app.pusher._tasks))  # type: ignore[misc]
            assert not house.app.pusher._replaced
            assert len(set(deleted(house))) >= least
            assert last not in deleted(house)
        assert len(one.plane.blobs()) == 1

    in_edges(tmp_path, scenario)


def test_a_kill_loses_no_push_that_was_acknowledged(tmp_path: Path) -> None:
    told: list[str] = []

    async def killed(one: BatchHouse, two: BatchHouse) -> None:
        told.append(await pushed(one))
        assert await served(two) == told[0]

    async def restarted(one: BatchHouse) -> None:
        assert copies(one) == []
        assert await served(one) == told[0]
        assert await pushed(one) != told[0]

    in_edges(tmp_path, killed, is_killed=True)
    in_edges(tmp_path, restarted, ("one",))


def test_a_server_without_an_answer_serves_no_push_that_may_be_old(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse) -> None:
        version = await pushed(one)
        one.plane.is_away = True
        assert await served(one) == ControlUnavailable.row.code
        await one.app.pusher.sweep()
        assert (await push(one, 1)).status_code == 503
        one.plane.is_away = False
        assert await served(one) == version
        assert len(copies(one)) == len(one.plane.blobs()) == 1

    in_edges(tmp_path, scenario, ("one",))


def test_a_publication_whose_answer_is_lost_is_in_force_or_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        names = one.app.pusher._names
        assert names is not None
        publish = names.pushes.publish

        async def lost(facts: Any) -> Any:
            await publish(facts)
            raise ControlUnavailable("the answer is lost")

        async def refused(facts: Any) -> Any:
            raise ControlUnavailable("the question is lost")

        monkeypatch.setattr(names.pushes, "publish", lost)
        assert (await push(one)).status_code == 503
        found = await served(two)
        assert await served(one) == found != "adapter_not_found"
        await when(lambda: soon(not one.app.pusher._tasks))
        assert await served(one) == found
        monkeypatch.setattr(names.pushes, "publish", refused)
        assert (await push(one, 1)).status_code == 503
        await when(lambda: soon(not one.app.pusher._tasks))
        assert await served(one) == await served(two) == found
        assert len(one.plane.blobs()) == len(copies(one)) == 1

    in_edges(tmp_path, scenario)


def test_damaged_bytes_are_not_served(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        version = await pushed(one)
        [blob] = one.plane.control.blobs_dir.glob("*/*")
        blob.write_bytes(bytes(len(body_of())))
        assert await served(two) == "storage_unavailable"
        assert copies(two) == []
        assert await served(one) == version

    in_edges(tmp_path, scenario)


def test_a_push_goes_when_no_request_has_come_for_long(tmp_path: Path) -> None:
    clock = ManualClock()

    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        version = await pushed(one)
        clock.advance(86_000)
        assert await served(two) == version
        clock.advance(86_000)
        await one.app.pusher.sweep()
        assert len(copies(one)) == 1
        clock.advance(1_000)
        for house in (one, two):
            await house.app.pusher.sweep()
            await when(lambda house=house: soon(copies(house) == []))  # type: ignore[misc]
        assert await served(one) == "adapter_not_found"

    in_edges(tmp_path, scenario, clock=clock)


def test_the_pushes_of_a_tenant_go_when_it_is_closed(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        version = await pushed(one)
        assert await served(two) == version
        await one.plane.close_tenant("acme")
        for house in (one, two):
            await house.app.pusher.sweep()
            await when(lambda house=house: soon(copies(house) == []))  # type: ignore[misc]
            await when(lambda house=house: soon(deleted(house) == [version]))  # type: ignore[misc]
        await one.plane.sweep()
        assert one.plane.blobs() == []

    in_edges(tmp_path, scenario)


def test_the_limits_hold_over_both_servers(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse, two: BatchHouse) -> None:
        assert (await push(one)).status_code == 200
        reply = await push(two, path=PATH.replace("tone", "other"))
        assert (reply.status_code, "adapters.pushed_count" in reply.text) == (403, True)
        assert copies(two) == []

    in_edges(tmp_path, scenario, limits={"pushed_count": 1})


def test_a_push_that_is_refused_leaves_the_earlier_one_and_no_file(tmp_path: Path) -> None:
    async def scenario(one: BatchHouse) -> None:
        version = await pushed(one)
        refused = f"tone/{int(version.partition('/')[2]) + 2}"  # a publication counts as well
        one.engine.texts.failures[refused] = AdapterCorrupt("the adapter cannot be read")
        reply = await push(one, 1)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "adapter_corrupt")
        assert await served(one) == version
        await when(lambda: soon(deleted(one) == [refused]))
        await when(lambda: soon(not one.app.pusher._tasks))
        assert [f"tone/{path.name}" for path in copies(one)] == [version]
        assert len(one.plane.blobs()) == 1

    in_edges(tmp_path, scenario, ("one",))


def test_pushes_and_deletions_of_any_tenant_are_acts_of_their_caller(tmp_path: Path) -> None:
    """Without keys, a program on the server's own machine is the operator, who may name a tenant."""
    tenants = tuple(TenantFacts(id=TenantId(name)) for name in ("acme", "globex"))
    control = FakeControl(Snapshot(revision=0, taken_ms=0, is_whole=True, pepper=PEPPER, tenants=tenants))
    directory = Directory(control, SystemClock(), poll_s=60.0, max_age_s=600.0)
    path = "/v1/adapters/tone/tensors"

    async def scenario(one: BatchHouse) -> None:
        await directory.refresh()
        for query in ("?tenant=globex", "?tenant=acme"):
            reply = await push(one, path=path + query)
            assert reply.status_code == 200, reply.text
        unknown = await push(one, path=f"{path}?tenant=nobody")
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "tenant")
        assert (await one.client.delete(f"{path}?tenant=globex")).json()["tenant"] == "globex"
        assert (await one.client.delete(f"{path}?tenant=globex")).status_code == 404
        assert (await served(one)).startswith("tone/")
        assert await served(one, "globex") == "adapter_not_found"
        told = [(act.verb, act.adapter, act.owner, act.actor, act.key) for act in control.acts]
        assert told == [
            ("push", "pushed://tone", "globex", "default", None),
            ("push", "pushed://tone", "acme", "default", None),
            ("delete", "pushed://tone", "globex", "default", None),
        ]
        assert all(act.request_id and act.address for act in control.acts)

    in_edges(tmp_path, scenario, ("one",), access=Access(SystemClock(), directory=directory))


def test_a_server_without_a_folder_of_pushes_refuses_them_by_name(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        path = "/v1/adapters/tone/tensors"
        for reply in (
            await house.client.post(path, content=b"12345678", headers=BYTES),
            await house.client.delete(path),
        ):
            assert reply.status_code == 501
            assert "adapters.pushed_bytes" in reply.json()["error"]["message"]

    in_house(scenario)


def test_a_key_pushes_for_its_own_tenant_and_an_operators_for_any(tmp_path: Path) -> None:
    settings = ("control.signup_open=true", "server.auth=on", "control.free_bases=tiny")
    path = "/v1/adapters/tone/tensors"
    with forked_server(tmp_path, *settings, f"adapters.pushed_dir={tmp_path / 'pushed'}") as (_, client):
        keys = {name: client.post("/v1/signup", json={"id": name}).json()["key"]["key"] for name in ("acme", "globex")}
        bearer = {name: {"authorization": f"Bearer {key}"} for name, key in keys.items()}
        made = client.post("/v1/account/keys", json={"name": "reader", "scopes": ["infer"]}, headers=bearer["acme"])
        bearer["reader"] = {"authorization": f"Bearer {made.json()['key']}"}

        def pushed(name: str, query: str = "") -> int:
            headers = {**BYTES, **bearer.get(name, {})}
            return client.post(f"{path}{query}", content=body_of(), headers=headers).status_code

        assert (pushed("nobody"), pushed("reader"), pushed("acme", "?tenant=globex")) == (401, 403, 403)
        assert pushed("acme") == 200
        body = {"prompt": "SAY:hi", "model": "tone"}
        used = {
            name: client.post("/v1/completions", json=body, headers=bearer[name]).headers.get("x-adapter-source")
            for name in ("acme", "reader")
        }
        assert used == {"acme": "pushed", "reader": "pushed"}
        other = client.post(
            "/v1/completions", json={**body, "adapter_source": "pushed", "adapter_id": "tone"}, headers=bearer["globex"]
        )
        assert other.status_code == 404
        assert client.delete(path, headers=bearer["globex"]).status_code == 404
        assert client.delete(path, headers=bearer["acme"]).status_code == 200
