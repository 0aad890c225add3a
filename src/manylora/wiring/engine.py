"""The composition root: it builds all objects from a configuration. No other file knows every concrete class."""

import dataclasses
import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from manylora.adapter_ref import AdapterRef, SourceName
from manylora.adapters.banks.bank import Bank
from manylora.adapters.banks.devices import CardBank, CpuBank
from manylora.adapters.banks.ranked import RankedBank
from manylora.adapters.base_shape import BaseShape, base_shape
from manylora.adapters.sources.local import LocalSource
from manylora.adapters.store.store import Store
from manylora.clock import Clock, SystemClock
from manylora.config.folders import cache_dir
from manylora.config.groups.engine import EngineConfig
from manylora.config.settings import Config, enabled_sources
from manylora.engine.engine import Engine
from manylora.engine.execution.batch import BatchBuilder
from manylora.engine.execution.executor import Executor, one_rank
from manylora.engine.execution.ranks.executor import FirstRank, RanksExecutor
from manylora.engine.execution.ranks.heartbeat import RankHeartbeat
from manylora.engine.execution.ranks.placements import PlacementStream
from manylora.engine.execution.runner import Runner
from manylora.engine.grammars.compiler import GrammarCompiler
from manylora.engine.grammars.compiling import Vocabulary, open_vocabulary
from manylora.engine.grammars.kept import GrammarQuota
from manylora.engine.grammars.trials import ProcessTrials, VocabularyText
from manylora.engine.grammars.vocabularies import Vocabularies
from manylora.engine.limits import EngineLimits
from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.lending import KvLender
from manylora.engine.scheduling.pins import AdapterPins
from manylora.engine.scheduling.scheduler import Scheduler
from manylora.errors import AdapterError, AdapterNotFound, ConfigInvalid
from manylora.kernels.adapter_layout import MAX_ADDED_TOKENS
from manylora.kernels.interface import Kernels
from manylora.kernels.operands import KvCache
from manylora.kernels.select import select_kernels
from manylora.kernels.storage_form import StorageForm
from manylora.models.checkpoint_files import (
    checked_entries,
    fingerprint,
    form_with_stored,
    storage_formats,
)
from manylora.models.fetch.catalog import request_names, resolve, served_name, short_name
from manylora.models.llama import LlamaModel
from manylora.models.spec import ModelSpec, read_spec
from manylora.models.tensor_parallel import shard
from manylora.models.text.adapter_text import AddedToken
from manylora.models.text.tokenizer import Tokenizer
from manylora.models.weights import load_weights
from manylora.server.engine_client.served_model import ServedModel
from manylora.system.resources import Resources, find_resources
from manylora.wiring.adapter_store import open_store
from manylora.wiring.load_progress import LoadProgress
from manylora.wiring.memory_plan import MemoryPlan, capture_limits
from manylora.wiring.planning import plan_card, plan_here
from manylora.wiring.ranks import Ranks, RankSizes, rank_device, rank_facts, rank_threads, starting
from manylora.wiring.step_limits import step_limits

log = logging.getLogger(__name__)

ReportLine = Callable[[str], None]
"""A function that is called with one line for each stage of the start, and with passing ones (`load_progress.py`)."""


def build_engine(config: Config, report: ReportLine) -> tuple[Engine, ServedModel]:
    """Load the base model and wire an engine around it, on the back end of the settings.

    Raises: as `build_engine_on`; `ConfigInvalid` for a card that torch does not find
    """
    resources = find_resources((os.getpid(),))
    kernels = _choose_kernels(config, resources)
    if kernels.name == "torch":  # perhaps in place of Triton's, which alone capture steps
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, kernels="torch"))
    return build_engine_on(kernels, config, report, resources)


def build_engine_on(
    kernels: Kernels, config: Config, report: ReportLine, resources: Resources
) -> tuple[Engine, ServedModel]:
    """Load the base model and wire an engine around it.

    Raises: `StartupError` (unknown model, unsupported architecture, memory that cannot fit, an adapter's folder with a
            name of the base), before weights are read.
    """
    base_dir = resolve(config.model.base, cache_dir(config))
    _refuse_adapters_named_as_the_base(config, served_name(config.model.base, base_dir))
    spec = read_spec(base_dir)
    with starting(config, spec, base_dir, kernels) as ranks:
        return _build(config, base_dir, spec, kernels, resources, ranks, report)


def _build(
    config: Config,
    base_dir: Path,
    spec: ModelSpec,
    kernels: Kernels,
    resources: Resources,
    ranks: Ranks | None,
    report: ReportLine,
) -> tuple[Engine, ServedModel]:
    clock = SystemClock()
    entries = checked_entries(base_dir, spec)
    formats = storage_formats(entries)
    threads = rank_threads(config, config.model.threads or resources.threads)
    report(f"kernels {kernels.name} loaded, {kernels.form.weights} weights, {threads} threads")
    plan = make_plan(config, spec, kernels, form_with_stored(kernels.form, spec, entries), resources)
    report("\n".join(plan.lines()))
    template = _chat_template(config)
    tokenizer = Tokenizer(base_dir, chat_template=template, clock=clock)
    report(_tokenizer_line(tokenizer, spec))
    grammars = _grammar_compiler(config.engine, tokenizer, spec.vocab, clock)
    digest = fingerprint(base_dir, spec)
    progress = LoadProgress(report, clock)
    model = _load_model(config, base_dir, spec, kernels, plan, ranks, digest, progress)
    report(progress.summary(formats))
    store = _open_store(config, plan, base_shape(spec, base_dir.name, digest), base_dir, kernels, clock, ranks)
    engine = wire_engine(config, plan, model, kernels, store, tokenizer, grammars, clock, ranks, report)
    served = _served(config, base_dir, spec, digest, kernels, plan, clock)
    return engine, dataclasses.replace(served, chat_template=template)


def _load_model(
    config: Config,
    base_dir: Path,
    spec: ModelSpec,
    kernels: Kernels,
    plan: MemoryPlan,
    ranks: Ranks | None,
    digest: str,
    progress: LoadProgress,
) -> LlamaModel:
    """Return the model, or rank 0's part of it after all other ranks have theirs."""
    if ranks is None:
        weights = load_weights(base_dir, spec, kernels, progress)
        captured = capture_limits(config, spec, plan.max_model_len)
        return LlamaModel(spec, weights, kernels, max_positions=plan.max_model_len, captured=captured)
    sizes = RankSizes(
        kv_blocks=plan.kv_blocks,
        block_size=plan.block_size,
        max_positions=plan.max_model_len,
        max_rows=config.engine.max_step_tokens,
    )
    group = ranks.join(rank_facts(config, digest, kernels), sizes)
    weights = load_weights(base_dir, spec, kernels, progress, ranks.share)
    ranks.await_weights()
    return LlamaModel(spec, weights, kernels, max_positions=plan.max_model_len, share=ranks.share, ranks=group)


def _grammar_compiler(limits: EngineConfig, tokenizer: Tokenizer, vocab: int, clock: Clock) -> GrammarCompiler:
    """Return the compiler of grammars over the base's `vocab` tokens, whose vocabulary opens beside other work."""
    base_text = cache(lambda: _vocabulary_text(tokenizer, vocab))

    def opened(added: tuple[AddedToken, ...]) -> Vocabulary:
        found = _vocabulary_text(tokenizer, vocab, added) if added else base_text()
        return open_vocabulary(found.text, size=found.size, ends=found.ends)

    def texts_of(added: tuple[AddedToken, ...]) -> dict[int, bytes]:
        own = tokenizer.with_added(added)
        return {token.id: own.token_bytes(token.id) for token in added}

    vocabularies = Vocabularies(opened, texts_of)
    vocabularies.prepare()
    quota = GrammarQuota(count=limits.grammar_count, num_bytes=limits.grammar_bytes, ttl_s=limits.grammar_ttl_s)
    return GrammarCompiler(vocabularies, clock, ProcessTrials(base_text), quota=quota)


def _vocabulary_text(tokenizer: Tokenizer, vocab: int, added: tuple[AddedToken, ...] = ()) -> VocabularyText:
    """Return the text of a vocabulary, with ids behind the base's for the special tokens that adapters may add."""
    size = max(vocab, tokenizer.vocab_size) + MAX_ADDED_TOKENS
    return VocabularyText.of(tokenizer.to_json(added), size, tuple(sorted(tokenizer.eos_ids)))


def _chat_template(config: Config) -> str:
    """Return the operator's chat template; empty if there is none. Raises `ConfigInvalid` for an unreadable file."""
    if not (file := config.model.chat_template):
        return ""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigInvalid(f"model.chat_template: cannot read {file}: {error}") from error
    if not text.strip():
        raise ConfigInvalid(f"model.chat_template: {file} is empty")
    return text


def _tokenizer_line(tokenizer: Tokenizer, spec: ModelSpec) -> str:
    without = spec.vocab - tokenizer.vocab_size
    padding = f"; {without} of {spec.vocab} ids have no token, and no text where the base draws one" if without else ""
    return f"tokenizer loaded, {'a' if tokenizer.has_chat_template else 'no'} chat template{padding}"


def _refuse_adapters_named_as_the_base(config: Config, model_id: str) -> None:
    """Raise `ConfigInvalid` for an adapter folder with the base's name, since no request could name that adapter."""
    source = LocalSource(tuple(map(Path, config.adapters.roots)))
    for name in dict.fromkeys(request_names(model_id)):
        try:
            source.locate(AdapterRef(SourceName.LOCAL, name))
        except AdapterNotFound:
            continue
        except AdapterError:
            pass  # the folder is an adapter's, although it cannot be served
        raise ConfigInvalid(
            f"the adapter folder {name!r} below {', '.join(config.adapters.roots)} has a name of the served base model "
            f"{model_id}, which every request with that name means; rename the folder"
        )


def make_plan(config: Config, spec: ModelSpec, kernels: Kernels, form: StorageForm, resources: Resources) -> MemoryPlan:
    """Return the memory plan from shapes alone, so that an impossible plan is refused before a weight is read.

    Args:  form  of the kernels, with the bits that the checkpoint's matrices take
    """
    if kernels.own_memory_bytes is not None:
        own = shard(spec, config.model.tensor_parallel)
        return plan_card(config, own, form, kernels.own_memory_bytes, resources.memory_bytes)
    return plan_here(config, spec, form, config.engine.memory_bytes or resources.memory_bytes)


def wire_engine(
    config: Config,
    plan: MemoryPlan,
    model: LlamaModel,
    kernels: Kernels,
    store: Store,
    tokenizer: Tokenizer,
    grammars: GrammarCompiler,
    clock: Clock,
    ranks: Ranks | None = None,
    report: ReportLine = lambda line: None,
) -> Engine:
    """Build an engine of scheduler, executor and adapter store around a loaded model, whose steps are captured here."""
    limits, spec = config.engine, model.spec
    kv = kernels.new_kv(
        layers=spec.num_layers,
        num_blocks=plan.kv_blocks,
        block_size=plan.block_size,
        kv_heads=model.own_spec.kv_heads,
        head_dim=spec.head_dim,
    )
    report("adapter store opened, KV cache laid out")
    if captured := model.prepare(kv):
        report(f"{captured} graphs of steps captured")
    builder = BatchBuilder(
        kernels,
        store.weights,
        max_rows=limits.max_step_tokens,
        block_size=plan.block_size,
        vocab=spec.vocab,
        hidden=spec.hidden,
    )
    executor = _executor(model, kv, builder, kernels, ranks, clock)
    pool = BlockPool(executor.kv.num_blocks, executor.kv.block_size, prefix_cache=limits.prefix_cache)
    lender = KvLender(pool, executor.kv, kept_blocks=plan.blocks_per_sequence)
    store.borrow_from(lender)
    pins = AdapterPins(store, lender, vocab=spec.vocab)
    return Engine(
        scheduler=Scheduler(pool, step_limits(config.engine, spec, kernels, plan.sliding_window), pins),
        executor=executor,
        store=store,
        pins=pins,
        grammars=grammars,
        clock=clock,
        limits=EngineLimits(
            max_model_len=plan.max_model_len,
            vocab=spec.vocab,
            max_waiting=limits.max_waiting,
            max_queue_s=limits.max_queue_s,
        ),
        end_of_sequence=tokenizer.eos_ids,
        # The stop strings are found in the same decoded text that the reply has.
        open_text=lambda added, skips: tokenizer.with_added(added).stream(skip_special_tokens=skips, continues=True),
        ranks=executor.numbers if isinstance(executor, RanksExecutor) else one_rank,
        computed=kernels.steps,
    )


def _executor(
    model: LlamaModel, kv: KvCache, builder: BatchBuilder, kernels: Kernels, ranks: Ranks | None, clock: Clock
) -> Executor:
    if ranks is None:
        return Runner(model, kv, builder, kernels.sample, kernels.mask_logits, kernels.score)
    first = FirstRank(model)
    runner = Runner(first, kv, builder, kernels.sample, kernels.mask_logits, kernels.score)
    return RanksExecutor(runner, first, ranks.processes, ranks.group, RankHeartbeat(ranks.processes, clock))


def _choose_kernels(config: Config, resources: Resources) -> Kernels:
    threads = rank_threads(config, config.model.threads or resources.threads)
    kernels = select_kernels(
        config.model.kernels,
        threads,
        device=rank_device(config, 0),
        quantize=config.model.quantize,
        spin_us=config.model.spin_us,
        cache_dir=cache_dir(config),
    )
    torch.set_num_threads(1 if kernels.owns_threads else threads)  # docs/decisions/threads.md
    return kernels


def _open_store(
    config: Config,
    plan: MemoryPlan,
    shape: BaseShape,
    base_dir: Path,
    kernels: Kernels,
    clock: Clock,
    ranks: Ranks | None,
) -> Store:
    adapters = dataclasses.replace(
        config.adapters,
        bank_bytes=plan.bank_bytes,
        host_bytes=plan.host_tier_bytes or plan.bank_bytes,
        ingest_bytes=plan.ingest_bytes,
    )
    return open_store(
        config=adapters,
        shape=shape,
        base_dir=base_dir,
        dtype=kernels.form.lora_dtype,
        bank=_bank(kernels, plan.bank_bytes, ranks),
        folder=cache_dir(config) / "adapters",
        clock=clock,
        registry_token=config.control.edge_token,
    )


def _bank(kernels: Kernels, num_bytes: int, ranks: Ranks | None) -> Bank:
    if ranks is not None:
        return RankedBank(num_bytes, ranks.share, PlacementStream(ranks.processes), kernels.place)
    if kernels.own_memory_bytes is None:
        return CpuBank(num_bytes)
    return CardBank(num_bytes, kernels.copies())


def _served(
    config: Config, base_dir: Path, spec: ModelSpec, digest: str, kernels: Kernels, plan: MemoryPlan, clock: Clock
) -> ServedModel:
    model_id = served_name(config.model.base, base_dir)
    return ServedModel(
        model_id=model_id,
        base_dir=str(base_dir),
        sha=digest,
        dtype=kernels.form.weights,
        device=kernels.device,
        max_model_len=plan.max_model_len,
        vocab_size=spec.vocab,
        embedding_size=spec.hidden,
        tensor_parallel=config.model.tensor_parallel,
        max_step_tokens=config.engine.max_step_tokens,
        max_running=config.engine.max_running,
        aliases=(short_name(model_id),),
        adapter_roots=config.adapters.roots,
        registry_dir=config.adapters.registry_dir,
        adapter_sources=tuple(sorted(enabled_sources(config.adapters))),
        default_source=SourceName(config.adapters.default_source),
        created_s=int(clock.wall_s()),
    )
