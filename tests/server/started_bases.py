"""The bases `org/small` and `org/large`, each with a fake engine of its own, for an edge of two."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from manylora.adapter_ref import SourceName
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.models import StartedBase
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer

SOURCES = (SourceName.LOCAL, SourceName.HUB)


@asynccontextmanager
async def started_bases(folder: Path, config: Config) -> AsyncIterator[tuple[list[FakeEngine], list[StartedBase]]]:
    """The bases `org/small` and `org/large` with running engines."""
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, model_id="tiny")
    engines: list[FakeEngine] = []
    started: list[StartedBase] = []
    for name in ("org/small", "org/large"):
        served = replace(served_for(folder), model_id=name, adapter_sources=SOURCES)
        engine = FakeEngine(tokenizer)
        client = EngineClient(InProcessTransport(partial(_built, engine, served)))
        await client.start()
        engines.append(engine)
        started.append(StartedBase(config=config, served=served, client=client, tokenizer=tokenizer))
    try:
        yield engines, started
    finally:
        for base in started:
            await base.client.close()


def _built(engine: FakeEngine, served: ServedModel) -> tuple[FakeEngine, ServedModel]:
    return engine, served
