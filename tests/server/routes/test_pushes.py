"""Pushes over HTTP: who may push for whom, the end of pushes with time and tenant, and what a refusal leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import torch
from safetensors.torch import save

from manylora.adapter_state import AdapterAction
from manylora.clock import ManualClock, SystemClock
from manylora.errors import AdapterCorrupt
from manylora.ids import TenantId
from manylora.server.access.access import Access
from manylora.server.access.directory import Directory
from manylora.tenancy import Snapshot, TenantFacts, TenantState
from tests.server.app.test_server_process import forked_server
from tests.server.conftest import House
from tests.server.fake_control import PEPPER, FakeControl

InHouse = Callable[..., None]
BODY = save({"weight": torch.zeros(2)}, metadata={"adapter_config.json": "{}"})
BYTES = {"content-type": "application/octet-stream"}
PATH = "/acme/deployments/v2/llms/tiny/v1/adapters/tone/tensors"


async def push(house: House, path: str = PATH) -> httpx2.Response:
    return await house.client.post(path, content=BODY, headers=BYTES)


async def has_tone(house: House) -> bool:
    body = {"inputs": "SAY:hi", "parameters": {"adapter_id": "tone", "adapter_source": "pushed"}}
    return (await house.client.post("/acme/deployments/v2/llms/tiny/generate", json=body)).status_code == 200


def deleted(house: House) -> list[str]:
    return [ref.id for action, ref in house.engine.adapters.asked if action is AdapterAction.DELETE]


def test_a_push_goes_when_no_request_has_come_for_long(in_house: InHouse, tmp_path: Path) -> None:
    clock = ManualClock()

    async def scenario(house: House) -> None:
        assert (await push(house)).status_code == 200
        clock.advance(86_000)
        assert await has_tone(house)
        clock.advance(86_000)
        house.app.pusher.sweep()
        clock.advance(1_000)
        house.app.pusher.sweep()
        assert not await has_tone(house)
        await house.until(lambda: deleted(house) == ["tone/1"])
        assert list((tmp_path / "pushed").iterdir()) == []

    in_house(scenario, pushed_dir=str(tmp_path / "pushed"), clock=clock)


def test_the_pushes_of_a_tenant_go_when_it_is_closed(in_house: InHouse, tmp_path: Path) -> None:
    acme = TenantFacts(id=TenantId("acme"))
    snapshot = Snapshot(revision=0, taken_ms=0, is_whole=True, pepper=PEPPER, tenants=(acme,))
    control = FakeControl(snapshot)
    directory = Directory(control, SystemClock(), poll_s=60.0, max_age_s=600.0)

    async def scenario(house: House) -> None:
        await directory.refresh()
        assert (await push(house)).status_code == 200
        house.app.pusher.sweep()
        assert await has_tone(house)
        control.snapshot_ = replace(snapshot, revision=1, tenants=(replace(acme, state=TenantState.CLOSED),))
        await directory.refresh()
        house.app.pusher.sweep()
        await house.until(lambda: deleted(house) == ["tone/1"])
        assert list((tmp_path / "pushed").iterdir()) == []

    in_house(scenario, pushed_dir=str(tmp_path / "pushed"), access=Access(SystemClock(), directory=directory))


def test_pushes_and_deletions_of_any_tenant_are_acts_of_their_caller(in_house: InHouse, tmp_path: Path) -> None:
    """Without keys, a program on the server's own machine is the operator, who may name a tenant."""
    tenants = tuple(TenantFacts(id=TenantId(name)) for name in ("acme", "globex"))
    control = FakeControl(Snapshot(revision=0, taken_ms=0, is_whole=True, pepper=PEPPER, tenants=tenants))
    directory = Directory(control, SystemClock(), poll_s=60.0, max_age_s=600.0)
    path = "/v1/adapters/tone/tensors"
    body = {"inputs": "SAY:hi", "parameters": {"adapter_id": "tone", "adapter_source": "pushed"}}

    async def scenario(house: House) -> None:
        await directory.refresh()
        for query in ("?tenant=globex", "?tenant=acme"):
            reply = await house.client.post(path + query, content=BODY, headers=BYTES)
            assert reply.status_code == 200, reply.text
        unknown = await house.client.post(f"{path}?tenant=nobody", content=BODY, headers=BYTES)
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "tenant")
        assert (await house.client.delete(f"{path}?tenant=globex")).json()["tenant"] == "globex"
        assert (await house.client.delete(f"{path}?tenant=globex")).status_code == 404
        for tenant, status in (("acme", 200), ("globex", 404)):
            found = await house.post(f"/{tenant}/deployments/v2/llms/tiny/generate", body)
            assert found.status_code == status
        told = [(act.verb, act.adapter, act.owner, act.actor, act.key) for act in control.acts]
        assert told == [
            ("push", "pushed://tone", "globex", "default", None),
            ("push", "pushed://tone", "acme", "default", None),
            ("delete", "pushed://tone", "globex", "default", None),
        ]
        assert all(act.request_id and act.address for act in control.acts)

    in_house(scenario, pushed_dir=str(tmp_path / "pushed"), access=Access(SystemClock(), directory=directory))


def test_a_push_that_is_refused_leaves_the_earlier_one_and_no_file(in_house: InHouse, tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        assert (await push(house)).status_code == 200
        house.engine.texts.failures["tone/2"] = AdapterCorrupt("Adapter 'tone/2' cannot be read")
        reply = await push(house)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "adapter_corrupt")
        assert await has_tone(house)
        await house.until(lambda: deleted(house) == ["tone/2"])
        folders = [path.name for path in (tmp_path / "pushed" / "acme" / "tone").iterdir()]
        assert folders == ["1"]

    in_house(scenario, pushed_dir=str(tmp_path / "pushed"))


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
            return client.post(f"{path}{query}", content=BODY, headers=headers).status_code

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
