"""Whom `/metrics` tells the names of adapters."""

from collections.abc import Callable

from tests.server.conftest import House

InHouse = Callable[..., None]


def test_a_stranger_sees_no_name_of_a_private_adapter(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        for adapter, source in (("triage", "local"), ("acme/secret", "hub"), ("acme/plan", "hub")):
            body = {"inputs": "Hi", "parameters": {"adapter_id": adapter, "adapter_source": source}}
            assert (await house.post("/generate", body)).status_code == 200
        own = (await house.client.get("/metrics")).text
        assert '\nmanylora_requests{adapter="acme/secret",reason="end_of_sequence"} 1.0' in own
        for query in ("", "?format=json"):
            foreign = await house.client.get(f"/metrics{query}", headers={"x-forwarded-for": "192.0.2.1"})
            assert "triage" in foreign.text
            assert "acme" not in foreign.text
        text = (await house.client.get("/metrics", headers={"x-forwarded-for": "192.0.2.1"})).text
        assert '\nmanylora_requests{adapter="other",reason="end_of_sequence"} 2.0' in text

    in_house(scenario, sources=("local", "hub"))
