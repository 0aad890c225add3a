"""The parts of a memory plan that are read before a start: the base's shape, the back end's storage, the memory.

No weight is read, no kernel is compiled, nothing is fetched. Imports without torch.
"""

import dataclasses
import os
from pathlib import Path

from manylora.config.folders import cache_dir
from manylora.config.groups.model import CARD_KERNELS
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid, MemoryPlanImpossible, StartupError
from manylora.kernels.cpu.native.build import has_compiler
from manylora.kernels.storage_form import FLOAT32, StorageForm, expected_form
from manylora.models.checkpoint_files import (
    checked_entries,
    form_with_stored,
    is_gguf,
)
from manylora.models.fetch.catalog import describe
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import shard
from manylora.models.text.token_files import TOKENIZER_FILE
from manylora.models.text.tokenizer import Tokenizer
from manylora.system.byte_sizes import byte_text
from manylora.system.resources import find_resources, has_cuda_device, machine_bytes
from manylora.wiring.memory_plan import MemoryPlan, base_sizes, plan_memory


def planned_form(config: Config, spec: ModelSpec | None = None, directory: Path | None = None) -> StorageForm:
    """Return the storage of the back end that the settings choose.

    On a CPU without a compiler that is the form of the reference kernels.

    Args:  spec, directory  of a base whose files are here: what they store in four bits counts as the back end keeps it
    """
    model = config.model
    if not model.device.startswith("cuda") and model.kernels not in CARD_KERNELS[1:] and not has_compiler():
        return FLOAT32
    form = expected_form(model.kernels, model.quantize, model.device)
    if spec is None or directory is None or not form.keeps_four_bits or form.quantises_to_four_bits:
        return form
    try:
        return form_with_stored(form, spec, checked_entries(directory, spec))
    except StartupError:
        return form  # a directory without weights is planned by its shape; the start checks the files


def refuse_unfit_files(directory: Path, spec: ModelSpec) -> None:
    """Raise what a start raises for a base's files, from headers and the tokenizer. Files that are not here pass."""
    if any(directory.glob("*.safetensors")) or is_gguf(directory):
        checked_entries(directory, spec)
    if (directory / TOKENIZER_FILE).is_file():
        Tokenizer(directory)


def available_bytes(config: Config) -> int:
    """Return the bytes that a server may take: `engine.memory_bytes`, or what this machine has left.

    Raises: `ConfigInvalid` for a card without `engine.memory_bytes`, since its engine alone asks the card
    """
    if config.model.device.startswith("cuda") and not config.engine.memory_bytes:
        raise ConfigInvalid(
            f"the memory of model.device {config.model.device} is not known here: give engine.memory_bytes "
            "(--device-memory)"
        )
    return config.engine.memory_bytes or find_resources((os.getpid(),)).memory_bytes


LOSS_S = 2.0
"""Seconds in which an engine whose wait for a rank has ended finds the processes that have ended, and says so."""


def refuse_impossible_ranks(config: Config, spec: ModelSpec) -> None:
    """Raise `ConfigInvalid` if the ranks of the settings cannot share a base, or cannot reach each other."""
    model = config.model
    try:
        shard(spec, model.tensor_parallel)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{model.base}: {error.message} (model.tensor_parallel)") from error
    if model.tensor_parallel > 1 and model.collectives == "nccl":
        if not has_cuda_device():
            raise ConfigInvalid("model.collectives nccl joins CUDA devices, and this machine has none: take gloo")
        if model.device == "cpu":
            raise ConfigInvalid("model.collectives nccl joins CUDA devices: with model.device cpu take gloo")


def refuse_hidden_losses(config: Config) -> None:
    """Raise `ConfigInvalid` if the edge would kill an engine that waits for a rank before the engine names the rank."""
    most = config.server.health_stall_s - LOSS_S
    if config.model.tensor_parallel > 1 and config.model.rank_timeout_s > most:
        raise ConfigInvalid(
            f"model.rank_timeout_s must be at least {LOSS_S:g} s below server.health_stall_s "
            f"({config.server.health_stall_s:g}), with model.tensor_parallel {config.model.tensor_parallel} of "
            f"{config.model.base}. Given: {config.model.rank_timeout_s:g}"
        )


def refuse_impossible_plan(config: Config) -> None:
    """Raise `MemoryPlanImpossible` for a base that cannot fit, and `ConfigInvalid` without a card, before a fetch.

    A card's memory is unknown here, so that a base for one passes: its engine checks it before a weight is read. A base
    whose shape is unknown here, since its repository was not pulled or its files are damaged, passes: the fetch and the
    start check it.
    """
    if config.model.device.startswith("cuda") and not has_cuda_device():
        raise ConfigInvalid(f"model.device {config.model.device}: this machine has no CUDA card; use model.device cpu")
    try:
        facts = describe(config.model.base, cache_dir(config))
    except StartupError:
        return
    refuse_impossible_ranks(config, facts.spec)
    if config.model.device == "cpu":
        plan_here(config, facts.spec, planned_form(config, facts.spec, facts.directory), available_bytes(config))


def plan_card(config: Config, spec: ModelSpec, form: StorageForm, card_bytes: int, host_bytes: int) -> MemoryPlan:
    """Return the plan of a base on a card with so many free bytes, beside so many of the host.

    Raises: `MemoryPlanImpossible`, also for an `engine.memory_bytes` beyond the card's free bytes
    """
    asked = config.engine.memory_bytes
    if asked > card_bytes:
        raise MemoryPlanImpossible(
            f"engine.memory_bytes is {byte_text(asked)}, and {config.model.device} has {byte_text(card_bytes)} free"
        )
    own = dataclasses.replace(config, model=dataclasses.replace(config.model, device="cuda"))  # `auto` has found it
    return plan_memory(own, base_sizes(own, spec, form), available_bytes=asked or card_bytes, host_bytes=host_bytes)


def plan_here(config: Config, spec: ModelSpec, form: StorageForm, num_bytes: int) -> MemoryPlan:
    """Return the plan of a base in so many bytes of this machine: of one rank, if several share it.

    Args:   spec  of the whole base
    Raises: `MemoryPlanImpossible`, also for a plan that takes more than the machine has, whatever
            `engine.memory_bytes` says; `ConfigInvalid` for a number of ranks that does not divide the base
    """
    ranks = config.model.tensor_parallel
    plan = plan_memory(config, base_sizes(config, shard(spec, ranks), form), available_bytes=num_bytes // ranks)
    taken, most = ranks * sum(plan.parts.values()), machine_bytes()
    if taken > most:
        raise MemoryPlanImpossible(
            f"{plan.base}: the memory plan takes {byte_text(taken)}, and this machine has {byte_text(most)}: lower "
            f"engine.memory_bytes ({config.engine.memory_bytes}) or engine.kv_bytes ({config.engine.kv_bytes})"
        )
    return plan
