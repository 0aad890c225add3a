"""The served base models: a handle for each of them, with everything that the edge knows and owns of one base."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from manylora.clock import Clock
from manylora.config.settings import Config
from manylora.models.text.tokenizer import Tokenizer
from manylora.server.engine_client.client import EngineClient
from manylora.server.engine_client.served_model import ServedModel
from manylora.server.generation.adapter_texts import AdapterTexts
from manylora.server.generation.admission import AdmissionControl
from manylora.server.generation.input_processor import InputProcessor
from manylora.server.observability.health import Health

TOKENIZER_THREADS = 2
"""Number of tokenizer threads of a model. The limit on concurrent requests bounds their queue."""


def tokenizer_of(served: ServedModel) -> Tokenizer:
    """Return the tokenizer of a served base. Raises as `Tokenizer`."""
    return Tokenizer(Path(served.base_dir), model_id=served.model_id, chat_template=served.chat_template)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedBase:
    """A base model whose engine has started.

    config     the settings of this base alone
    served     the facts that the engine has sent
    client     the client of its engine, which the caller closes
    journal    the name of the meter's journal of its engine; empty: the first one, or none
    """

    config: Config
    served: ServedModel
    client: EngineClient
    tokenizer: Tokenizer
    journal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHandle:
    """One base model with its engine client, texts, input processor, health and threads.

    name    the name of the base model in replies, prices and usage
    served  the facts about the model
    engine  the client of the engine that runs it
    texts   the text rules of its adapters
    inputs  turns orders into prompts of tokens
    health  judges its engine
    pool    threads for the tokenizer
    journal the name of the meter's journal of its engine
    places  the base's own places, so that a full base leaves those of the others free; None: it is the only base
    """

    name: str
    served: ServedModel
    engine: EngineClient
    texts: AdapterTexts
    inputs: InputProcessor
    health: Health
    pool: ThreadPoolExecutor
    journal: str = ""
    places: AdmissionControl | None = None

    def close(self) -> None:
        """End the threads and processes. The owner of the engine client closes that."""
        self.inputs.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


def open_model(base: StartedBase, clock: Clock, *, is_only: bool = True) -> ModelHandle:
    """Return the handle of a base whose engine has started. `is_only`: whether the server has no other base."""
    config, served, engine = base.config, base.served, base.client
    pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix="manylora-tokenizer")
    texts = AdapterTexts(base.tokenizer, engine, pool, max_wait_s=config.engine.max_queue_s)
    inputs = InputProcessor(
        served,
        texts,
        pool,
        allows_templates=config.adapters.chat_templates,
        tool_format=config.model.tool_format,
    )
    health = Health(engine, config.server, clock, load_timeout_s=config.adapters.load_timeout_s)
    return ModelHandle(
        name=served.model_id,
        served=served,
        engine=engine,
        texts=texts,
        inputs=inputs,
        health=health,
        pool=pool,
        journal=base.journal,
        places=None if is_only else AdmissionControl(config.server.max_concurrent_requests),
    )
