"""The parts of a memory plan that are read before a start: the base's shape, the back end's storage, the memory.

No weight is read, no kernel is compiled, nothing is fetched. Imports without torch.
"""

import os

from manylora.config.folders import cache_dir
from manylora.config.settings import Config
from manylora.errors import ConfigInvalid, MemoryPlanImpossible, StartupError
from manylora.kernels.cpu.native.build import has_compiler
from manylora.kernels.storage_form import FLOAT32, StorageForm, expected_form
from manylora.models.fetch.catalog import describe
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import shard
from manylora.system.byte_sizes import byte_text
from manylora.system.resources import find_resources, has_cuda_device, machine_bytes
from manylora.wiring.memory_plan import MemoryPlan, base_sizes, plan_memory


def planned_form(config: Config) -> StorageForm:
    """Return the storage of the back end that the settings choose; without a compiler that of the reference kernels."""
    return expected_form(config.model.kernels, config.model.quantize) if has_compiler() else FLOAT32


def available_bytes(config: Config) -> int:
    """Return the bytes that a server may take: `engine.memory_bytes`, or what this machine has left."""
    return config.engine.memory_bytes or find_resources((os.getpid(),)).memory_bytes


def refuse_impossible_ranks(config: Config, spec: ModelSpec) -> None:
    """Raise `ConfigInvalid` if the ranks of the settings cannot share a base, or cannot reach each other."""
    model = config.model
    try:
        shard(spec, model.tensor_parallel)
    except ConfigInvalid as error:
        raise ConfigInvalid(f"{model.base}: {error.message} (model.tensor_parallel)") from error
    if model.tensor_parallel > 1 and model.collectives == "nccl" and not has_cuda_device():
        raise ConfigInvalid("model.collectives nccl joins CUDA devices, and this machine has none: take gloo")


def refuse_ranks(config: Config) -> None:
    """Raise `ConfigInvalid` for more than one rank, until the ranks' processes are there."""
    if config.model.tensor_parallel > 1:
        degree = config.model.tensor_parallel
        raise ConfigInvalid(f"model.tensor_parallel {degree}: this version computes a base on one rank")


def refuse_impossible_plan(config: Config) -> None:
    """Raise `MemoryPlanImpossible` for a base that cannot fit, before it is fetched.

    A base whose shape is unknown here, since its repository was not pulled or its files are damaged, passes: the fetch
    and the start check it.
    """
    try:
        facts = describe(config.model.base, cache_dir(config))
    except StartupError:
        return
    refuse_impossible_ranks(config, facts.spec)
    refuse_ranks(config)
    plan_here(config, facts.spec, planned_form(config), available_bytes(config))


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
