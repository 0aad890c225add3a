"""The capacity of a memory plan: streams by their context, adapters by their rank, and devices that share a base.

The plan is the one with which `serve` starts. Nothing here reads the machine. Imports without torch.
"""

import dataclasses
from dataclasses import dataclass

from manylora.adapters.base_shape import base_shape
from manylora.adapters.packing.lora_sizes import TARGETS, lora_bytes
from manylora.config.settings import Config
from manylora.engine.scheduling.retention import Retention
from manylora.kernels.storage_form import CARDS, QUANTISED, StorageForm
from manylora.models.sizes import kv_block_bytes
from manylora.models.spec import ModelSpec
from manylora.models.tensor_parallel import degrees, shard
from manylora.wiring.memory_plan import MemoryPlan, base_sizes, divide_memory

RANKS = (8, 16, 32, 64)
_LEAST_CONTEXT = 256
_MOST_CONTEXTS = 4


@dataclass(frozen=True, slots=True)
class StreamRoom:
    """Sequences of one length that run side by side.

    planned  with the plan's KV cache, at most `engine.max_running`
    most     with a KV cache of all memory that the other parts leave
    """

    context: int
    planned: int
    most: int


@dataclass(frozen=True, slots=True)
class AdapterRoom:
    """LoRAs of one rank on one set of `TARGETS`: the bytes of one, and the number that the bank holds."""

    rank: int
    targets: str
    num_bytes: int
    number: int


@dataclass(frozen=True, slots=True)
class DegreeRoom:
    """The share of one device at a tensor-parallel degree. `objection`: why it does not fit; None: it does."""

    degree: int
    weight_bytes: int
    kv_token_bytes: int
    objection: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCapacity:
    """A base in the memory of one device, or of each of several that share it.

    config     the settings of the plan
    plan       of one device
    objection  the reason why the engine cannot start so; None: it can
    forms      values of `model.quantize` with which it can; empty for kernels that hold one form alone
    degrees    the share of one device at each degree that divides the base
    """

    config: Config
    plan: MemoryPlan
    objection: str | None
    kv_token_bytes: int
    streams: tuple[StreamRoom, ...]
    adapters: tuple[AdapterRoom, ...]
    forms: tuple[str, ...]
    degrees: tuple[DegreeRoom, ...]

    @property
    def degree_needed(self) -> int | None:
        """The least degree at which the base fits; None: it fits at none."""
        return next((room.degree for room in self.degrees if room.objection is None), None)


def measure_capacity(
    config: Config,
    spec: ModelSpec,
    form: StorageForm,
    *,
    available_bytes: int,
    streams: int | None = None,
) -> MemoryCapacity:
    """Return the capacity of `model.tensor_parallel` devices with `available_bytes` each.

    Args:    streams  sequences of a whole window that must fit side by side; None: one, as for a start
    Raises:  `ConfigInvalid` for a degree that does not divide the base
    """
    part = shard(spec, config.model.tensor_parallel)
    own, plan, objection = _plan(config, part, form, available_bytes, streams)
    quantised = next((forms for forms in (QUANTISED, CARDS) if form in forms.values()), {})
    return MemoryCapacity(
        config=own,
        plan=plan,
        objection=objection,
        kv_token_bytes=kv_token_bytes(part, form),
        streams=stream_room(own, plan),
        adapters=adapter_room(part, form, plan.bank_bytes),
        forms=tuple(
            name for name, each in quantised.items() if _plan(config, part, each, available_bytes, streams)[2] is None
        ),
        degrees=tuple(_degree_room(config, spec, each, form, available_bytes, streams) for each in degrees(spec)),
    )


def _plan(
    config: Config, spec: ModelSpec, form: StorageForm, available_bytes: int, streams: int | None
) -> tuple[Config, MemoryPlan, str | None]:
    """Return settings with room for the streams, the plan with them, and the objection to it."""
    sizes = base_sizes(config, spec, form)
    plan = divide_memory(config, sizes, available_bytes=available_bytes)
    if streams is None:
        return config, plan, plan.objection()
    blocks = streams * plan.blocks_per_sequence
    engine = dataclasses.replace(
        config.engine,
        max_running=max(streams, config.engine.max_running),
        kv_bytes=config.engine.kv_bytes or blocks * sizes.kv_block_bytes,
    )
    own = dataclasses.replace(config, engine=engine)
    plan = divide_memory(own, sizes, available_bytes=available_bytes)
    objection = plan.objection()
    if objection is None and plan.kv_blocks < blocks:
        held = plan.kv_blocks // plan.blocks_per_sequence
        objection = f"engine.kv_bytes = {engine.kv_bytes} holds {held} streams of {plan.max_model_len} positions"
    return own, plan, objection


def _degree_room(
    config: Config, spec: ModelSpec, degree: int, form: StorageForm, available_bytes: int, streams: int | None
) -> DegreeRoom:
    part, model = shard(spec, degree), dataclasses.replace(config.model, tensor_parallel=degree)
    _, plan, objection = _plan(dataclasses.replace(config, model=model), part, form, available_bytes, streams)
    return DegreeRoom(degree, plan.weight_bytes, kv_token_bytes(part, form), objection)


def stream_room(config: Config, plan: MemoryPlan) -> tuple[StreamRoom, ...]:
    """Return the room for streams of a whole window and of a few shorter contexts, the shortest first."""
    engine = config.engine
    retention = Retention(block_size=plan.block_size, max_rows=engine.max_step_tokens, window=plan.sliding_window)

    def room(context: int) -> StreamRoom:
        blocks = retention.most_blocks(context)
        return StreamRoom(context, min(engine.max_running, plan.kv_blocks // blocks), plan.most_kv_blocks // blocks)

    return tuple(map(room, contexts(plan.max_model_len)))


def contexts(window: int) -> list[int]:
    """Return the window and up to four shorter contexts, ascending, each a quarter of the next."""
    found = [window]
    while len(found) <= _MOST_CONTEXTS and found[-1] // 4 >= _LEAST_CONTEXT:
        found.append(found[-1] // 4)
    return found[::-1]


def adapter_room(spec: ModelSpec, form: StorageForm, bank_bytes: int) -> tuple[AdapterRoom, ...]:
    """Return the room for LoRAs of each of `RANKS` and `TARGETS` in a bank of so many bytes."""
    shape = base_shape(spec, "", "")

    def room(rank: int, targets: str) -> AdapterRoom:
        num_bytes = lora_bytes(shape, TARGETS[targets], rank, form.lora_dtype)
        return AdapterRoom(rank, targets, num_bytes, bank_bytes // num_bytes)

    return tuple(room(rank, targets) for rank in RANKS for targets in TARGETS)


def kv_token_bytes(spec: ModelSpec, form: StorageForm) -> int:
    """Return the bytes of one position's keys and values in a block without padding."""
    return kv_block_bytes(spec, form, form.kv_lanes) // form.kv_lanes
