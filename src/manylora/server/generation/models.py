"""The base models that a server serves: a handle for each, and the way from a request's model name to a handle."""

from collections.abc import Sequence
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.directory import Directory
from manylora.server.engine_client.link import EngineLink
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.adapter_resolver import AdapterResolver
from manylora.server.generation.adapter_texts import AdapterTexts
from manylora.server.generation.input_processor import InputProcessor
from manylora.server.generation.tokenizer_pool import WorkPool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHandle:
    """One base model with all that belongs to it alone.

    served    its facts
    engine    the client of the engine that runs it
    resolver  the meaning of adapters' names beside it
    inputs    its tokenizer, its chat templates, its window
    pool      threads for its tokenizer
    """

    served: ServedModel
    engine: EngineLink
    resolver: AdapterResolver
    inputs: InputProcessor
    pool: WorkPool

    @property
    def name(self) -> str:
        """The name of the base in replies, prices and usage."""
        return self.served.model_id

    def close(self) -> None:
        """End its threads and processes; the engine stays its owner's to close."""
        self.inputs.close()
        self.pool.close()
        self.resolver.close()


def open_model(
    config: Config,
    served: ServedModel,
    engine: EngineLink,
    tokenizer: Tokenizer,
    clock: Clock,
    directory: Directory | None = None,
) -> ModelHandle:
    """Return the handle of a model. `directory`: where uploads are looked up; None: in the registry's folder alone."""
    resolver, pool = AdapterResolver(served, directory, clock), WorkPool()
    texts = AdapterTexts(tokenizer, engine, pool, max_wait_s=config.engine.max_queue_s)
    inputs = InputProcessor(served, resolver, texts, pool, allows_templates=config.adapters.chat_templates)
    return ModelHandle(served=served, engine=engine, resolver=resolver, inputs=inputs, pool=pool)


class ModelRouter:
    """Finds the handle of a request's model. The first handle is the default."""

    def __init__(self, handles: Sequence[ModelHandle]) -> None:
        """`handles`: at least one."""
        self.default, *_ = self.handles = tuple(handles)

    def of(self, name: str | None) -> ModelHandle:
        """Return the handle of a base's name; other names are adapters' of the default base."""
        return next((handle for handle in self.handles if handle.served.is_base_name(name)), self.default)

    def serves(self, deployment: str) -> bool:
        """Return whether a base has that deployment name."""
        return any(handle.served.is_base_name(deployment) for handle in self.handles)

    def close(self) -> None:
        """Close every handle."""
        for handle in self.handles:
            handle.close()
