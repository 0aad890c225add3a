"""GET /v1/account/adapters: a tenant sees the states of its own adapters, and of no other tenant's."""

from collections.abc import Callable

import pytest

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapter_state import AdapterInfo, AdapterState
from tests.server.conftest import House

FLEET = {"one:9100": AdapterState.ON_DISK, "two:9100": AdapterState.ON_DEVICE, "three:9100": AdapterState.ON_DISK}


# The fake engine moves adapters on at each look, but those whose names begin with `stuck`.
def keep(house: House, tenant: str, name: str, **facts: object) -> None:
    ref = AdapterRef(SourceName.PBASE, name, tenant=tenant)
    found = {"state": AdapterState.ON_DEVICE} | facts
    house.engine.adapters.known[ref] = AdapterInfo(id=name, source="pbase", tenant=tenant, **found)  # type: ignore[arg-type]  # facts of several types


def test_a_tenant_sees_tier_hits_and_last_use_of_its_own_versions(in_house: Callable[..., None]) -> None:
    async def scenario(house: House) -> None:
        keep(house, "default", "stuck/1", hits=7, last_use_s=4.5, num_bytes=10, replicas=FLEET)
        keep(house, "acme", "stuck/1", hits=99)
        keep(house, "acme", "secret/1", hits=99)
        reply = await house.client.get("/v1/account/adapters?names=stuck/1,missing/1,stuck/1")
        assert reply.json() == {
            "object": "list",
            "data": [
                {
                    "name": "stuck/1",
                    "base": "tiny",
                    "state": "on_device",
                    "replicas": {"on_device": 1, "on_disk": 2},
                    "num_bytes": 10,
                    "hits": 7,
                    "last_use_s": 4.5,
                    "error": "",
                }
            ],
        }
        alone = await house.client.get("/v1/account/adapters?names=stuck-fresh/1")
        assert [(each["state"], each["replicas"]) for each in alone.json()["data"]] == [("absent", {"absent": 1})]

    in_house(scenario)


@pytest.mark.parametrize(
    "names", [",".join(f"a/{n}" for n in range(1, 102)), "../secret", "acme/secret/1"], ids=["many", "path", "owner"]
)
def test_strange_names_are_refused(in_house: Callable[..., None], names: str) -> None:
    async def scenario(house: House) -> None:
        reply = await house.client.get("/v1/account/adapters", params={"names": names})
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "names"

    in_house(scenario)
