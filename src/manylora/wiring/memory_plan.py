"""The division of the memory between weights, KV cache and adapters, computed at the start and printed.

Pure arithmetic: the caller says how many bytes there are, so that one base can be planned for any machine, any share of
a machine, and as one device's shard. Imports without torch.
"""

from dataclasses import dataclass
from typing import NamedTuple

from manylora.adapters.store.loads import INGEST_FACTOR
from manylora.config.groups.adapters import MIB
from manylora.config.settings import Config
from manylora.engine.scheduling.retention import Retention
from manylora.errors import MemoryPlanImpossible
from manylora.kernels.captures.limits import CaptureLimits, captured_rows
from manylora.kernels.projections import table_width
from manylora.kernels.storage_form import StorageForm
from manylora.models.sizes import angle_bytes, kv_block_bytes, step_bytes, weight_bytes, widened_bytes
from manylora.models.spec import ModelSpec

EDGE_BYTES = 192 * MIB
"""Bytes of the edge: interpreter, libraries, tokenizer, control plane. Measured: 159 MiB under load."""
ENGINE_BYTES = 240 * MIB
"""Bytes of the engine without the plan's other lines: interpreter and libraries, above all torch. Measured: 201 MiB."""
INGEST_PROCESS_BYTES = 48 * MIB
"""Bytes of the ingest process without its loads. Measured: 23 MiB."""
FILE_BYTES = 80 * MIB
"""Bytes of program files' pages that are always in use: dropped, they would be read again at once."""
PROCESS_BYTES = EDGE_BYTES + ENGINE_BYTES + INGEST_PROCESS_BYTES + FILE_BYTES
"""Bytes of the processes together; `docs/decisions/memory.md` has the measurements and the command for them."""
CARD_BYTES = 1024 * MIB
"""Bytes of a card beside the plan's other lines: context, libraries, workspaces. An estimate, not a measurement."""


def rank_process_bytes(ranks: int) -> int:
    """Return each rank's equal part of the bytes of all processes; every further rank is one more engine process."""
    return (PROCESS_BYTES + (ranks - 1) * ENGINE_BYTES) // ranks


BYTES_OF_A_WAITING_TOKEN = 84
"""Bytes of a waiting prompt's token in edge and engine. Measured: 500 requests of 7,000 tokens took 280 MiB."""

_SHARE_OF_ADAPTERS = 4
_SHARE_OF_INGEST = 8
_SHARE_OF_PROMPTS = 8
_MOST_ADAPTER_BYTES = 1024 * MIB
_ADVICE = "lower engine.max_model_len, engine.kv_bytes or adapters.bank_bytes, or give the process more memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseSizes:
    """The bytes of a base that the division needs, from its shape, the back end's storage and the settings.

    name            for the messages
    weight_bytes    packed base weights
    kv_block_bytes  one block of `engine.block_size` positions, all layers
    max_positions   the base model's own window
    sliding_window  positions that a row of the model sees, in the layer that sees most; None: all before it
    step_bytes      activations and logits of a step of `engine.max_step_tokens` rows, and the rotary angles
    captured_bytes  of a card: inputs, rows between operations and graphs of its captured steps
    captured_graphs of a card: their number
    """

    name: str
    weight_bytes: int
    kv_block_bytes: int
    max_positions: int
    sliding_window: int | None = None
    step_bytes: int = 0
    captured_bytes: int = 0
    captured_graphs: int = 0


def base_sizes(config: Config, spec: ModelSpec, form: StorageForm) -> BaseSizes:
    """Return the sizes of a base, or of the shard that `spec` describes. Nothing is read or allocated."""
    engine = config.engine
    window = min(engine.max_model_len or spec.max_positions, spec.max_positions)
    limits = capture_limits(config, spec, window)
    captured = 0 if limits is None else limits.num_bytes + step_bytes(spec, captured_rows(limits.max_rows)[-1])
    return BaseSizes(
        name=config.model.base,
        weight_bytes=weight_bytes(spec, form),
        kv_block_bytes=kv_block_bytes(spec, form, engine.block_size),
        max_positions=spec.max_positions,
        sliding_window=spec.kv_window,
        step_bytes=step_bytes(spec, engine.max_step_tokens, config.model.tensor_parallel)
        + angle_bytes(spec, window)
        + widened_bytes(spec, form),
        captured_bytes=captured,
        captured_graphs=0 if limits is None else limits.num_graphs,
    )


def capture_limits(config: Config, spec: ModelSpec, window: int) -> CaptureLimits | None:
    """Return the limits of the steps of a base that a card captures; None where the settings name no card for it.

    Args:  window  positions of a sequence at most
    """
    if config.model.device == "cpu" or config.model.kernels == "torch" or config.model.tensor_parallel > 1:
        return None
    return CaptureLimits(
        max_rows=config.engine.max_running,
        max_positions=window,
        block_size=config.engine.block_size,
        vocab=spec.vocab,
        layers=spec.num_layers,
        width=table_width(0 if spec.experts is None else spec.experts.count),
        max_rank=config.adapters.max_rank,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of each part; `kv_blocks` blocks of `block_size` positions make up `kv_bytes`.

    base                 name of the base
    ranks                ranks that share it; all other numbers are of one of them
    sliding_window       positions that a row of the model sees; None: all before it, in every sequence that fits
    blocks_per_sequence  blocks that one sequence of `max_model_len` positions holds at most at once
    host_tier_bytes      packed images in host memory beside a card; 0 on a CPU
    host_bytes           bytes that the processes of a server with a card may take of the host; None: not known
    is_card              the parts are those of a card: ingest, prompts, host tier and processes take host memory
    captured_bytes       of a card: what captured steps take; `captured_graphs` is their number

    On a CPU the bank and the host tier are the same memory, within the smaller of the two budgets.
    """

    base: str
    ranks: int = 1
    available_bytes: int
    weight_bytes: int
    kv_bytes: int
    kv_blocks: int
    kv_block_bytes: int
    block_size: int
    max_model_len: int
    sliding_window: int | None
    blocks_per_sequence: int
    bank_bytes: int
    ingest_bytes: int
    prompt_bytes: int
    step_bytes: int
    process_bytes: int
    host_tier_bytes: int = 0
    host_bytes: int | None = None
    is_card: bool = False
    captured_bytes: int = 0
    captured_graphs: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part of the planned memory by its name."""
        beside = {"adapter ingest": self.ingest_bytes, "prompts": self.prompt_bytes}
        return {
            "weights": self.weight_bytes,
            "KV cache": self.kv_bytes,
            "adapters": self.bank_bytes,
            **({} if self.is_card else beside),
            "step buffers": self.step_bytes,
            **({"captured steps": self.captured_bytes} if self.captured_graphs else {}),
            "processes": self.process_bytes,
        }

    @property
    def host_parts(self) -> dict[str, int]:
        """Bytes of each part of the host's memory beside a card; empty on a CPU."""
        if not self.is_card:
            return {}
        return {
            "host tier": self.host_tier_bytes,
            "adapter ingest": self.ingest_bytes,
            "prompts": self.prompt_bytes,
            "processes": self.ranks * rank_process_bytes(self.ranks),
        }

    @property
    def most_kv_blocks(self) -> int:
        """Blocks of the largest KV cache beside the other parts."""
        return max(0, self.available_bytes - sum(self.parts.values()) + self.kv_bytes) // self.kv_block_bytes

    def lines(self) -> list[str]:
        """Return the plan as the lines that the start prints."""
        positions = self.kv_blocks * self.block_size
        sliding = "" if self.sliding_window is None else f", sliding window {self.sliding_window}"
        ranks = "" if self.ranks == 1 else f" for each of {self.ranks} ranks"
        shown = {"weights": "base weights", "adapters": "adapter bank"}
        notes = {"KV cache": f"   {positions} positions, window {self.max_model_len}{sliding}"}
        notes["captured steps"] = f"   {self.captured_graphs} graphs"
        lines = [f"{'card memory' if self.is_card else 'memory'} available {_mib(self.available_bytes)}{ranks}"]
        for title, parts in (("", self.parts), ("host memory", self.host_parts)):
            lines += [title] if title and parts else []
            lines += [
                f"  {shown.get(name, name):<14} {_mib(taken)}{notes.get(name, '')}" for name, taken in parts.items()
            ]
        return lines

    def objection(self) -> str | None:
        """Return the reason why the engine cannot start with this plan, with the arithmetic; None: it can."""
        parts = {**self.parts, "KV cache": max(self.kv_bytes, self.blocks_per_sequence * self.kv_block_bytes)}
        total = sum(parts.values())
        sum_text = " + ".join(f"{name} {_mib(num_bytes)}" for name, num_bytes in parts.items())
        sum_text += f" = {_mib(total)}, available {_mib(self.available_bytes)}"
        sum_text += "" if self.ranks == 1 else f" for each of {self.ranks} ranks"
        if total > self.available_bytes:
            return f"the memory plan does not fit: {sum_text}; {_ADVICE}{self._largest()}"
        if self.kv_blocks < self.blocks_per_sequence:
            needed = f"one window of {self.max_model_len}"
            if (kept := self.blocks_per_sequence * self.block_size) < self.max_model_len:
                needed = f"the {kept} that a sequence holds with its sliding window of {self.sliding_window}"
            return (
                f"the KV cache of {_mib(self.kv_bytes)} holds {self.kv_blocks * self.block_size} positions, "
                f"less than {needed}: {sum_text}; {_ADVICE}"
            )
        taken = sum(self.host_parts.values())
        if self.host_bytes is not None and taken > self.host_bytes:
            return (
                f"the host tier, ingest, prompts and processes take {_mib(taken)} of host memory, available "
                f"{_mib(self.host_bytes)}; lower adapters.host_bytes or adapters.ingest_bytes"
            )
        return None

    def _largest(self) -> str:
        """Return the largest value that fits of the setting that the KV cache follows from; empty if none does."""
        if not self.most_kv_blocks:
            return ""
        if self.kv_blocks > self.blocks_per_sequence:
            return f"; the largest engine.kv_bytes that fits is {self.most_kv_blocks * self.kv_block_bytes}"
        return f"; the largest engine.max_model_len that fits is {self.most_kv_blocks * self.block_size}"


def plan_memory(config: Config, sizes: BaseSizes, *, available_bytes: int, host_bytes: int | None = None) -> MemoryPlan:
    """Divide the memory as `divide_memory`. Raises `MemoryPlanImpossible` with the base's name and the arithmetic."""
    plan = divide_memory(config, sizes, available_bytes=available_bytes, host_bytes=host_bytes)
    if (why := plan.objection()) is not None:
        raise MemoryPlanImpossible(f"{sizes.name}: {why}. `manylora plan` shows what fits")
    return plan


def divide_memory(
    config: Config, sizes: BaseSizes, *, available_bytes: int, host_bytes: int | None = None
) -> MemoryPlan:
    """Divide the memory; settings that are 0 are derived.

    Args:
        sizes            of the base, or of one rank's shard if `model.tensor_parallel` is above 1
        available_bytes  bytes that the server's processes may take in all (`engine.memory_bytes`, else the rest in
                         the control groups or the machine, plus the bytes that the processes have taken already); an
                         equal part of them for each rank. With `model.device` a card: free bytes of the card
        host_bytes       with a card: the same of the host; None: not known, and no derived value follows from it
    The derived values, where the rest is the memory that weights and processes leave:
        window      the model's own
        adapters    a quarter of the rest, 1 GiB at most
        ingest      enough for one adapter of the largest size, an eighth of the rest at most
        prompts     enough for the largest number of requests of a whole window, an eighth of the rest at most
        KV cache    two sequences of a whole window, or 256 positions a running sequence if that is more, as far as
                    memory allows. A sequence of a sliding window holds that window and one step's rows
    On a card the bank gets a quarter of the rest whatever that is, and the host tier as much as the bank, a quarter of
    the host's rest at most.
    Returns a plan that may not fit: `MemoryPlan.objection` says so.
    """
    engine = config.engine
    ranks = config.model.tensor_parallel
    window = min(engine.max_model_len or sizes.max_positions, sizes.max_positions)
    is_card = config.model.device.startswith("cuda")
    process_bytes = CARD_BYTES if is_card else rank_process_bytes(ranks)
    captured_bytes = sizes.captured_bytes if is_card else 0
    left = available_bytes - sizes.weight_bytes - sizes.step_bytes - captured_bytes - process_bytes
    shares = _card_shares(config, left, host_bytes, window) if is_card else _shares(config, left, window)
    sliding_window = sizes.sliding_window
    if sliding_window is not None and sliding_window >= window:
        sliding_window = None  # no row sees less than the whole sequence
    retention = Retention(block_size=engine.block_size, max_rows=engine.max_step_tokens, window=sliding_window)
    blocks_per_sequence = retention.most_blocks(window)
    if engine.kv_bytes:
        blocks = engine.kv_bytes // sizes.kv_block_bytes
    else:
        wanted = max(2 * blocks_per_sequence, engine.max_running * -(-256 // engine.block_size))
        blocks = min(wanted, max(0, left - shares.on_device) // sizes.kv_block_bytes)
    return MemoryPlan(
        base=sizes.name,
        ranks=ranks,
        available_bytes=available_bytes,
        weight_bytes=sizes.weight_bytes,
        kv_bytes=blocks * sizes.kv_block_bytes,
        kv_blocks=blocks,
        kv_block_bytes=sizes.kv_block_bytes,
        block_size=engine.block_size,
        max_model_len=window,
        sliding_window=sliding_window,
        blocks_per_sequence=blocks_per_sequence,
        bank_bytes=shares.bank,
        ingest_bytes=shares.ingest,
        prompt_bytes=shares.prompts,
        step_bytes=sizes.step_bytes,
        process_bytes=process_bytes,
        host_tier_bytes=shares.host_tier,
        host_bytes=host_bytes if is_card else None,
        is_card=is_card,
        captured_bytes=captured_bytes,
        captured_graphs=sizes.captured_graphs if is_card else 0,
    )


class _Shares(NamedTuple):
    """Bytes beside weights, KV cache and processes; `on_device` of them in the planned memory."""

    bank: int
    host_tier: int
    ingest: int
    prompts: int
    on_device: int


def _shares(config: Config, left: int, window: int) -> _Shares:
    """Return the shares on a CPU. `left`: bytes beside weights and processes."""
    adapters = config.adapters
    given = [budget for budget in (adapters.host_bytes, adapters.bank_bytes) if budget]
    bank = min(given, default=max(0, min(_MOST_ADAPTER_BYTES, left // _SHARE_OF_ADAPTERS)))
    ingest, prompts = _beside(config, left, window)
    return _Shares(bank, 0, ingest, prompts, bank + ingest + prompts)


def _card_shares(config: Config, left: int, host_bytes: int | None, window: int) -> _Shares:
    """Return the shares with a card, of which `left` bytes are beside weights and processes."""
    adapters = config.adapters
    ranks = config.model.tensor_parallel
    host_left = None if host_bytes is None else host_bytes - ranks * rank_process_bytes(ranks)
    bank = adapters.bank_bytes or max(0, left // _SHARE_OF_ADAPTERS)
    most = bank if host_left is None else max(0, host_left // _SHARE_OF_ADAPTERS)
    ingest, prompts = _beside(config, host_left, window)
    host_tier = 0 if ranks > 1 else adapters.host_bytes or min(bank, most)  # ranks place what comes from the disk
    return _Shares(bank, host_tier, ingest, prompts, bank)


def _beside(config: Config, left: int | None, window: int) -> tuple[int, int]:
    """Return the bytes of ingest and of prompts in a memory of which `left` bytes are free; None: not known."""
    largest = round(INGEST_FACTOR * config.adapters.max_bytes)
    most_prompts = BYTES_OF_A_WAITING_TOKEN * window * config.server.max_concurrent_requests
    if left is None:
        return config.adapters.ingest_bytes or largest, most_prompts
    ingest = config.adapters.ingest_bytes or max(1, min(largest, left // _SHARE_OF_INGEST))
    return ingest, max(0, min(most_prompts, left // _SHARE_OF_PROMPTS))


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:8.1f} MiB"
