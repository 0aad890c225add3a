"""The served base models: a handle for each of them, and the router from a request's model name to a handle."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.access.directory import Directory
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.adapter_texts import AdapterTexts
from manylora.server.generation.input_processor import InputProcessor
from manylora.server.generation.pusher import Pusher
from manylora.server.names.adapter_resolver import AdapterResolver
from manylora.server.names.pushed_adapters import PushedAdapters

TOKENIZER_THREADS = 2
"""Number of tokenizer threads of a model. The limit on concurrent requests bounds their queue."""


def tokenizer_of(served: ServedModel) -> Tokenizer:
    """Return the tokenizer of a served base. Raises as `Tokenizer`."""
    return Tokenizer(Path(served.base_dir), model_id=served.model_id, chat_template=served.chat_template)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHandle:
    """One base model with its engine client, resolver, input processor and threads.

    served    the facts about the model
    engine    the client of the engine that runs it
    resolver  resolves the names of its adapters
    inputs    turns orders into prompts of tokens
    pusher    takes the adapters that trainers push
    pool      threads for the tokenizer
    """

    served: ServedModel
    engine: EngineClient
    resolver: AdapterResolver
    inputs: InputProcessor
    pusher: Pusher
    pool: ThreadPoolExecutor

    @property
    def name(self) -> str:
        """The name of the base model in replies, prices and usage."""
        return self.served.model_id

    def close(self) -> None:
        """End the threads and processes. The owner of the engine client closes that."""
        self.pusher.close()
        self.inputs.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.resolver.close()


def open_model(
    config: Config,
    served: ServedModel,
    engine: EngineClient,
    tokenizer: Tokenizer,
    clock: Clock,
    directory: Directory | None = None,
) -> ModelHandle:
    """Return the handle of a model. `directory` has the uploads; None: they are in the registry's folder alone."""
    pushed = PushedAdapters(config.adapters, clock) if config.adapters.pushed_dir else None
    resolver = AdapterResolver(served, directory, clock, pushed)
    pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="manylora-tokenizer")
    texts = AdapterTexts(tokenizer, engine, pool, max_wait_s=config.engine.max_queue_s)
    inputs = InputProcessor(
        served,
        resolver,
        texts,
        pool,
        allows_templates=config.adapters.chat_templates,
        tool_format=config.model.tool_format,
    )
    pusher = Pusher(
        pushed, config.adapters, engine=engine, resolver=resolver, texts=texts, clock=clock, directory=directory
    )
    return ModelHandle(served=served, engine=engine, resolver=resolver, inputs=inputs, pusher=pusher, pool=pool)


class ModelRouter:
    """Finds the handle of a request's model. The first handle is the default."""

    def __init__(self, handles: Sequence[ModelHandle]) -> None:
        """`handles` has at least one handle. No two of them share a name, except for a name of the default."""
        self.default, *_ = self.handles = tuple(handles)
        self._by_name = {name: handle for handle in reversed(self.handles) for name in handle.served.names}

    def of(self, name: str | None) -> ModelHandle:
        """Return the handle of a base model's name; for no name and for names of adapters, the default handle."""
        return self.default if name is None else self._by_name.get(name, self.default)

    def serves(self, deployment: str) -> bool:
        """Return whether a base model has that name, from the path of a deployment."""
        return deployment in self._by_name

    def close(self) -> None:
        """Close every handle."""
        for handle in self.handles:
            handle.close()
