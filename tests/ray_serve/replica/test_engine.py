"""The measurements of one replica."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from manylora.adapter_state import AdapterInfo
from tests.ray_serve.carried import fleet
from tests.support.waiting import PATIENCE_S


def test_a_replica_lists_its_adapters_only_after_one_of_them_may_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S), fleet(tmp_path, num_replicas=1) as (_, calls):
            ((name, replica),) = calls.replicas.items()
            engine = calls.engines[name]
            lists: list[tuple[AdapterInfo, ...]] = []

            def listed() -> tuple[AdapterInfo, ...]:
                lists.append(engine.adapters.infos())
                return lists[-1]

            monkeypatch.setattr(engine, "infos", listed)
            for _ in range(5):
                await replica.observe()
            assert len(lists) == 1
            engine.store = replace(engine.store, loads=1)
            for _ in range(5):
                await replica.observe()
            assert len(lists) == 2

    asyncio.run(main())
