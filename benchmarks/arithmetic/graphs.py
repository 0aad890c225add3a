"""Operations timed as a captured graph, as the engine runs them: one native call for all of them."""

from collections.abc import Callable
from typing import Any

import torch

from manylora.kernels.interface import Kernels
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import AttentionBatch, KvCache, StepInput
from manylora.kernels.table_of_operations import Operations

Work = Callable[[], object]
Body = Callable[[Operations[Any], Any, StepInput, KvCache], object]
"""Operations on rows x, which are embedded beforehand."""

_NOTHING = torch.empty(0)
NO_ATTENTION = AttentionBatch(_NOTHING, _NOTHING, _NOTHING, _NOTHING)
_TOKENS = 64


def graph_of(
    kernels: Kernels,
    body: Body,
    *,
    rows: int,
    width: int,
    kv: KvCache | None = None,
    attention: AttentionBatch = NO_ATTENTION,
    lora: LoraBatch | None = None,
) -> Work:
    """Return a function that embeds `rows` rows of x (rows, width), runs `body` on them and samples one row of 16."""
    table = kernels.pack(torch.randn(_TOKENS, width))
    head = kernels.pack(torch.randn(16, width))
    own = kv or kernels.new_kv(layers=1, num_blocks=1, block_size=1, kv_heads=1, head_dim=8)
    step = StepInput(
        token_ids=torch.arange(rows) % _TOKENS,
        logit_rows=torch.tensor([0]),
        attention=attention,
        lora=lora or kernels.prepare_lora(()),
    )

    def forward(ops: Operations[Any], step: StepInput, kv: KvCache) -> Any:  # of the kind of rows that ops has
        x = ops.embed(step.token_ids, table)
        body(ops, x, step, kv)
        return ops.logits(ops.take_rows(x, step.logit_rows), head)

    run = kernels.compile(forward)
    return lambda: run(step, own)
