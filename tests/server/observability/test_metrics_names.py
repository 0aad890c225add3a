"""Whom `/metrics` tells the names of adapters."""

from collections.abc import Callable
from typing import Any

import pytest

from manylora.server.engine_client.client import EngineClient, EngineHealth
from tests.server.conftest import House

InHouse = Callable[..., None]
WELL: dict[str, Any] = {"is_up": True, "in_flight": 0, "stalled_s": 0.0, "loader_stalled_s": 0.0}


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


def test_only_operators_see_the_names_of_silent_replicas(in_house: InHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(house: House) -> None:
        silent = ("10.0.0.1:7070", "10.0.0.2:7070")
        monkeypatch.setattr(EngineClient, "health", lambda _: EngineHealth(**WELL, silent=silent))
        own = (await house.client.get("/metrics")).text
        for name in silent:
            assert f'\nmanylora_replica_silent{{replica="{name}"}} 1.0' in own
        foreign = (await house.client.get("/metrics", headers={"x-forwarded-for": "192.0.2.1"})).text
        assert '\nmanylora_replica_silent{replica="other"} 2.0' in foreign
        assert "10.0.0." not in foreign
        monkeypatch.setattr(EngineClient, "health", lambda _: EngineHealth(**WELL))
        assert "manylora_replica_silent{" not in (await house.client.get("/metrics")).text

    in_house(scenario)
