"""The way from the names in a request to the handle of a base."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.http.callers import ANONYMOUS
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.models import StartedBase
from manylora.server.generation.routing import ModelRouter, Naming, open_models
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer


@contextmanager
def router(folder: Path, *names: str) -> Iterator[ModelRouter]:
    """A router with one base of each name, whose engines do not run."""
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, model_id="tiny")

    def started(name: str) -> StartedBase:
        served = replace(served_for(folder), model_id=name)
        client = EngineClient(InProcessTransport(lambda: (FakeEngine(tokenizer), served)))
        return StartedBase(config=Config(), served=served, client=client, tokenizer=tokenizer)

    models = open_models([started(name) for name in names], ManualClock())
    try:
        yield models
    finally:
        models.close()


def base_of(models: ModelRouter, name: str | None, **naming: str) -> str:
    return asyncio.run(models.target(Naming(name=name, **naming), ANONYMOUS)).model.name  # type: ignore[arg-type]


def test_a_base_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    with router(tmp_path, "org/small", "org/large") as models:
        small, large = models.handles
        assert [models.named(name) for name in ("org/small", "small", "small/")] == [small] * 3
        assert [models.named(name) for name in ("org/large", "large")] == [large, large]
        assert base_of(models, "large") == base_of(models, None, model="large") == "org/large"
        assert models.serves("large")


def test_no_name_is_the_first_base_or_that_of_the_path(tmp_path: Path) -> None:
    with router(tmp_path, "org/small", "org/large") as models:
        for name in (None, "", "__base_model__"):
            assert base_of(models, name) == "org/small"
            assert base_of(models, name, deployment="large") == "org/large"
        assert models.named("triage") is None
        assert not models.serves("triage")
