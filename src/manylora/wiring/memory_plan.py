"""The division of the memory between weights, KV cache and adapters, computed at the start and printed."""

from dataclasses import dataclass

from manylora.adapters.store.loads import INGEST_FACTOR
from manylora.config.groups.adapters import MIB
from manylora.config.settings import Config
from manylora.engine.scheduling.retention import Retention
from manylora.errors import MemoryPlanImpossible

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
BYTES_OF_A_WAITING_TOKEN = 84
"""Bytes of a waiting prompt's token in edge and engine. Measured: 500 requests of 7,000 tokens took 280 MiB."""

_SHARE_OF_ADAPTERS = 4
_SHARE_OF_INGEST = 8
_SHARE_OF_PROMPTS = 8
_MOST_ADAPTER_BYTES = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of each part; `kv_blocks` blocks of `block_size` positions make up `kv_bytes`.

    sliding_window       positions that a row of the model sees; None: all before it, in every sequence that fits
    blocks_per_sequence  blocks that one sequence of `max_model_len` positions holds at most at once

    On a CPU the bank and the host tier are the same memory, within the smaller of the two budgets.
    """

    available_bytes: int
    weight_bytes: int
    kv_bytes: int
    kv_blocks: int
    block_size: int
    max_model_len: int
    sliding_window: int | None
    blocks_per_sequence: int
    bank_bytes: int
    ingest_bytes: int
    prompt_bytes: int
    step_bytes: int
    process_bytes: int

    def lines(self) -> list[str]:
        """Return the plan as the lines that the start prints."""
        positions = self.kv_blocks * self.block_size
        sliding = "" if self.sliding_window is None else f", sliding window {self.sliding_window}"
        return [
            f"memory available {_mib(self.available_bytes)}",
            f"  base weights   {_mib(self.weight_bytes)}",
            f"  KV cache       {_mib(self.kv_bytes)}   {positions} positions, window {self.max_model_len}{sliding}",
            f"  adapter bank   {_mib(self.bank_bytes)}",
            f"  adapter ingest {_mib(self.ingest_bytes)}",
            f"  prompts        {_mib(self.prompt_bytes)}",
            f"  step buffers   {_mib(self.step_bytes)}",
            f"  processes      {_mib(self.process_bytes)}",
        ]


def plan_memory(
    config: Config,
    *,
    available_bytes: int,
    weight_bytes: int,
    kv_block_bytes: int,
    max_positions: int,
    sliding_window: int | None = None,
    step_bytes: int = 0,
) -> MemoryPlan:
    """Divide the memory; settings that are 0 are derived.

    Args:
        available_bytes  bytes that the server's processes may take in all (`engine.memory_bytes`, else the rest in
                         the control groups or the machine, plus the bytes that the processes have taken already)
        weight_bytes     packed base weights
        kv_block_bytes   one block of `engine.block_size` positions, all layers
        max_positions    the base model's own window
        sliding_window   positions that a row of the model sees, in the layer that sees most; None: all before it
        step_bytes       activations and logits of a step of `engine.max_step_tokens` rows, and the rotary angles
    The derived values, where the rest is the memory that weights and processes leave:
        window      the model's own
        adapters    a quarter of the rest, 1 GiB at most
        ingest      enough for one adapter of the largest size, an eighth of the rest at most
        prompts     enough for the largest number of requests of a whole window, an eighth of the rest at most
        KV cache    two sequences of a whole window, or 256 positions a running sequence if that is more, as far as
                    memory allows. A sequence of a sliding window holds that window and one step's rows
    Raises: MemoryPlanImpossible with the arithmetic, if one sequence of a whole window does not fit.
    """
    engine = config.engine
    window = min(engine.max_model_len or max_positions, max_positions)
    left = available_bytes - weight_bytes - step_bytes - PROCESS_BYTES
    bank, ingest, prompts = _shares(config, left, window)
    if sliding_window is not None and sliding_window >= window:
        sliding_window = None  # no row sees less than the whole sequence
    retention = Retention(block_size=engine.block_size, max_rows=engine.max_step_tokens, window=sliding_window)
    blocks_per_sequence = retention.most_blocks(window)
    if engine.kv_bytes:
        blocks = engine.kv_bytes // kv_block_bytes
    else:
        wanted = max(2 * blocks_per_sequence, engine.max_running * -(-256 // engine.block_size))
        blocks = min(wanted, max(0, left - bank - ingest - prompts) // kv_block_bytes)
    plan = MemoryPlan(
        available_bytes=available_bytes,
        weight_bytes=weight_bytes,
        kv_bytes=blocks * kv_block_bytes,
        kv_blocks=blocks,
        block_size=engine.block_size,
        max_model_len=window,
        sliding_window=sliding_window,
        blocks_per_sequence=blocks_per_sequence,
        bank_bytes=bank,
        ingest_bytes=ingest,
        prompt_bytes=prompts,
        step_bytes=step_bytes,
        process_bytes=PROCESS_BYTES,
    )
    _require_fit(plan, kv_block_bytes)
    return plan


def _shares(config: Config, left: int, window: int) -> tuple[int, int, int]:
    """Return the bytes of the adapter bank, of ingest and of prompts. `left`: bytes beside weights and processes."""
    adapters = config.adapters
    given = [budget for budget in (adapters.host_bytes, adapters.bank_bytes) if budget]
    bank = min(given, default=max(0, min(_MOST_ADAPTER_BYTES, left // _SHARE_OF_ADAPTERS)))
    largest = round(INGEST_FACTOR * adapters.max_bytes)
    ingest = adapters.ingest_bytes or max(1, min(largest, left // _SHARE_OF_INGEST))
    most_prompts = BYTES_OF_A_WAITING_TOKEN * window * config.server.max_concurrent_requests
    return bank, ingest, max(0, min(most_prompts, left // _SHARE_OF_PROMPTS))


def _require_fit(plan: MemoryPlan, kv_block_bytes: int) -> None:
    kv_bytes = max(plan.kv_bytes, plan.blocks_per_sequence * kv_block_bytes)
    parts = {
        "weights": plan.weight_bytes,
        "KV cache": kv_bytes,
        "adapters": plan.bank_bytes,
        "adapter ingest": plan.ingest_bytes,
        "prompts": plan.prompt_bytes,
        "step buffers": plan.step_bytes,
        "processes": plan.process_bytes,
    }
    total = sum(parts.values())
    sum_text = " + ".join(f"{name} {_mib(num_bytes)}" for name, num_bytes in parts.items())
    sum_text += f" = {_mib(total)}, available {_mib(plan.available_bytes)}"
    advice = "lower engine.max_model_len, engine.kv_bytes or adapters.bank_bytes, or give the process more memory"
    if total > plan.available_bytes:
        fitting = (plan.available_bytes - total + kv_bytes) // kv_block_bytes * plan.block_size
        largest = f"; the largest engine.max_model_len that fits is {fitting}" if fitting > 0 else ""
        raise MemoryPlanImpossible(f"the memory plan does not fit: {sum_text}; {advice}{largest}")
    if plan.kv_blocks < plan.blocks_per_sequence:
        needed = f"one window of {plan.max_model_len}"
        if (kept := plan.blocks_per_sequence * plan.block_size) < plan.max_model_len:
            needed = f"the {kept} that a sequence holds with its sliding window of {plan.sliding_window}"
        raise MemoryPlanImpossible(
            f"the KV cache of {_mib(plan.kv_bytes)} holds {plan.kv_blocks * plan.block_size} positions, "
            f"less than {needed}: {sum_text}; {advice}"
        )


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:8.1f} MiB"
