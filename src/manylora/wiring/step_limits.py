"""The bounds of a step: what the settings say, and the work of a row from the base's shape."""

import logging

from manylora.config.groups.engine import EngineConfig
from manylora.engine.scheduling.step import StepLimits
from manylora.engine.scheduling.work import RowWork
from manylora.kernels.interface import Kernels
from manylora.models.spec import ModelSpec

log = logging.getLogger(__name__)


def step_limits(limits: EngineConfig, spec: ModelSpec, kernels: Kernels, sliding_window: int | None) -> StepLimits:
    """Return the scheduler's bounds, with no draft tokens on kernels whose rows depend on others in a batch.

    Args:  sliding_window  positions that a row sees, itself included, in the layer that sees most; None: all before it
    """
    draft_tokens = limits.guess_tokens if kernels.is_row_independent else 0
    if draft_tokens != limits.guess_tokens:
        log.info("engine.no_speculation kernels=%s reason=rows_are_not_independent", kernels.name)
    return StepLimits(
        max_rows=limits.max_step_tokens,
        max_running=limits.max_running,
        batch_rows=limits.batch_step_tokens,
        max_scored_rows=limits.max_running,  # so that a step has no more logits than when every sequence draws
        max_draft_tokens=draft_tokens,
        draft_width=limits.guess_width,
        sliding_window=sliding_window,
        row_work=row_work(spec),
        max_gap_steps=limits.max_gap_steps,
    )


def row_work(spec: ModelSpec) -> RowWork:
    """Return the work of a row: multiplications of attention for each position that it sees ÷ those of its products.

    In one layer q·k takes heads * head_dim multiplications for each position, and so does the sum of the values.
    """
    windows = [spec.window(layer) for layer in range(spec.num_layers)]
    layer = 2 * spec.q_size / spec.row_products
    full = sum(window is None for window in windows)
    return RowWork(full=full * layer, windowed=(len(windows) - full) * layer, window=spec.sliding_window or 0)
