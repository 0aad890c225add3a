"""The question of a start which lines of a killed server have a result."""

import asyncio
import logging
from pathlib import Path

import pytest

from manylora.clock import SystemClock
from manylora.config.settings import Config
from manylora.ids import TenantId
from manylora.server.storage import storage
from manylora.stored.files import KeptQuestion
from tests.server.batches.batch_house import batch_house, line, soon, when


def test_the_question_waits_for_a_control_plane_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(storage, "AWAY_WAIT_S", 0.001)
    caplog.set_level(logging.WARNING, "manylora.server.storage")

    async def scenario() -> None:
        async with batch_house(tmp_path) as house:
            batch = await house.until(await house.create([line("a")]))
            request = (await house.results(batch["output_file_id"]))["a"]["response"]["request_id"]
            question = KeptQuestion(tenant=TenantId("default"), requests=(request, "batch_req_x"), opened_ms=0)
            kept = storage.open_storage(
                tmp_path / "restarted", house.plane.client, SystemClock(), Config().storage, plane="0" * 16
            )
            house.plane.is_away = True
            asking = asyncio.create_task(kept.kept_lines([question]))
            await when(lambda: soon(caplog.text.count("storage.kept_lines_unknown tenant=default") >= 2))
            house.plane.is_away = False
            assert await asking == {request}
            kept.close()

    asyncio.run(scenario())
