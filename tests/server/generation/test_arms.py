"""Shadows of an alias: they run after the answer, cost nothing, and disturb no caller."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from manylora.adapter_ref import AdapterRef
from manylora.engine.request import Priority
from manylora.failure import Failure
from manylora.ids import TenantId
from manylora.rollouts.rollout import Rollout
from manylora.server.generation import arms
from manylora.tenancy import RepositoryFacts
from tests.server.conftest import House

InHouse = Callable[..., None]
ACME = TenantId("acme")
REPOSITORIES = (
    RepositoryFacts(
        owner=ACME,
        name="support",
        versions=(1, 2),
        aliases=(("prod", 1),),
        rollouts=(("prod", Rollout(parts=((0, 1),), shadow=2)),),
    ),
)


async def ask(house: House, prompt: str = "Hi", stream: bool = False) -> int:
    body = {"model": "support/prod", "prompt": prompt, "max_tokens": 3, "stream": stream}
    return (await house.post("/acme/deployments/v2/llms/tiny/v1/completions", body)).status_code


async def counts(house: House) -> dict[str, float]:
    text = (await house.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("manylora_alias_requests{")]
    return {line.partition("{")[2].partition("}")[0]: float(line.rpartition(" ")[2]) for line in lines}


def label(version: int, role: str, result: str) -> str:
    return f'adapter="acme/support/prod@{version}",result="{result}",role="{role}"'


@pytest.mark.parametrize("stream", [False, True])
def test_a_shadow_runs_after_the_answer_at_batch_priority(in_house: InHouse, stream: bool) -> None:
    async def scenario(house: House) -> None:
        assert await ask(house, stream=stream) == 200
        assert house.app.arms is not None
        await house.app.arms.idle()
        ran = [(each.adapter.id if each.adapter else "", each.priority) for each in house.engine.submitted]
        assert ran == [("support/1", Priority.INTERACTIVE), ("support/2", Priority.BATCH)]
        assert await counts(house) == {label(1, "answer", "ok"): 1.0, label(2, "shadow", "ok"): 1.0}

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


def test_a_request_that_is_refused_has_no_shadow(in_house: InHouse) -> None:
    async def scenario(house: House) -> None:
        assert await ask(house, "x " * 100_000) == 400
        assert house.app.arms is not None
        await house.app.arms.idle()
        assert house.engine.submitted == []
        assert await counts(house) == {label(1, "answer", "error"): 1.0}

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


@pytest.mark.parametrize("limit", ["MOST_SHADOWS", "MOST_OF_A_TENANT"])
def test_shadows_beyond_a_limit_are_dropped(in_house: InHouse, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(arms, limit, 0)

    async def scenario(house: House) -> None:
        assert await ask(house) == 200
        assert await counts(house) == {label(1, "answer", "ok"): 1.0, label(2, "shadow", "dropped"): 1.0}

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


def test_a_shadow_that_fails_disturbs_no_answer(in_house: InHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    def failure(adapter: AdapterRef | None) -> Failure | None:
        is_shadow = adapter is not None and adapter.id == "support/2"
        return Failure(error="AdapterCorrupt", message="told to fail") if is_shadow else None

    async def scenario(house: House) -> None:
        monkeypatch.setattr(house.engine, "_failure", failure)
        assert [await ask(house) for _ in range(2)] == [200, 200]
        assert house.app.arms is not None
        await house.app.arms.idle()
        assert await counts(house) == {label(1, "answer", "ok"): 2.0, label(2, "shadow", "error"): 2.0}

    in_house(scenario, sources=("local", "pbase"), repositories=REPOSITORIES)


def test_a_shadow_that_is_gone_is_none(in_house: InHouse) -> None:
    facts = (replace(REPOSITORIES[0], versions=(1,)),)

    async def scenario(house: House) -> None:
        assert await ask(house) == 200
        assert await counts(house) == {label(1, "answer", "ok"): 1.0}

    in_house(scenario, sources=("local", "pbase"), repositories=facts)
