"""The way from a request's model name to the handle of a base."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from manylora.clock import ManualClock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.in_process import InProcessTransport
from manylora.server.generation.models import ModelHandle, ModelRouter, open_model
from tests.server.fake_engine import FakeEngine, served_for
from tests.server.tiny_tokenizer import save_tokenizer


@contextmanager
def router(folder: Path, *names: str) -> Iterator[ModelRouter]:
    """A router with one base of each name."""
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, model_id="tiny")

    def handle(name: str) -> ModelHandle:
        served = replace(served_for(folder), model_id=name)
        engine = FakeEngine(tokenizer)
        client = EngineClient(InProcessTransport(lambda: (engine, served)))
        return open_model(Config(), served, client, tokenizer, ManualClock())

    models = ModelRouter([handle(name) for name in names])
    try:
        yield models
    finally:
        models.close()


def test_a_base_is_found_by_each_of_its_names(tmp_path: Path) -> None:
    with router(tmp_path, "org/small", "org/large") as models:
        small, large = models.handles
        assert [models.of(name) for name in ("org/small", "small")] == [small, small]
        assert [models.of(name) for name in ("org/large", "large")] == [large, large]
        assert models.serves("large")


def test_no_name_and_the_name_of_an_adapter_are_the_first_bases(tmp_path: Path) -> None:
    with router(tmp_path, "org/small", "org/large") as models:
        assert {models.of(name).name for name in (None, "", "triage", "__base_model__")} == {"org/small"}
        assert not models.serves("triage")
