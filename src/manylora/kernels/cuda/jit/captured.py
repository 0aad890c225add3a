"""Steps of one row a sequence as captured launches: one graph for each number of rows, without and with adapters."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from manylora.kernels.adapter_layout import changes_projections_alone
from manylora.kernels.captures.limits import CaptureLimits, StepCounts, captured_rows
from manylora.kernels.cuda.graphs import Replay, StepCapture
from manylora.kernels.cuda.jit.chunks import LoraChunks, StagedLora
from manylora.kernels.cuda.jit.static_inputs import StaticInputs
from manylora.kernels.interface import CompiledForward
from manylora.kernels.lora_batch import LoraBatch
from manylora.kernels.operands import KvCache, StepInput

log = logging.getLogger(__name__)


class CapturedForward:
    """A `CompiledForward` that replays steps of decoding and computes all others operation by operation.

    `prepare` captures every size and kind before the first step; one that it has not is captured at the first step that
    needs it. Grids have the largest number of chunks, splits and pages of
    ranks, never those of the step at the capture; programs without work return at once. A size that cannot be
    captured is computed by `eager` from then on. A forward pass that waits for the device is never recorded.

    Args:  forward     the forward pass on staged inputs    eager  the same, which stages a step by itself
           waits       returns whether a forward pass has waited for numbers of the device
           lora_dtype  of adapters' images
    """

    def __init__(
        self,
        forward: Callable[[StepInput, KvCache], Tensor],
        eager: CompiledForward,
        limits: CaptureLimits,
        capture: StepCapture,
        counts: StepCounts,
        device: torch.device,
        waits: Callable[[], bool],
        lora_dtype: torch.dtype,
    ) -> None:
        self._image = torch.empty(0, dtype=lora_dtype, device=device)
        self._forward, self._eager, self._waits = forward, eager, waits
        self._limits, self._capture, self._counts = limits, capture, counts
        self._device = device
        self._sizes = captured_rows(limits.max_rows)
        self._inputs = StaticInputs(limits, device)
        self._logits = torch.empty((self._sizes[-1], limits.vocab), dtype=torch.float32, device=device)
        self._replays: dict[tuple[int, bool], Replay | None] = {}
        self._kv: KvCache | None = None
        self._known: tuple[Tensor, bool] | None = None  # the tables of the last adapters, and whether a replay fits

    def prepare(self, kv: KvCache) -> int:
        """Capture every size, the largest first, whose memory the others take again; return the number of graphs.

        The steps have rows of no sequence and no adapter: they write no key and no value.
        """
        for size in reversed(self._sizes):
            self._inputs.clear()
            for has_adapters in (False, True):
                if not self._waits():
                    self._replay_of(size, has_adapters, kv)
        return sum(replay is not None for replay in self._replays.values())

    def __call__(self, step: StepInput, kv: KvCache, reuse: Tensor | None = None) -> Tensor:
        rows, chunks = len(step.token_ids), _chunks(step.lora)
        size = next((size for size in self._sizes if size >= rows), 0)
        replay = None
        if rows and size and not self._waits() and self._is_decoding(step) and self._inputs.fits(step, chunks, size):
            self._inputs.fill(step, chunks, size)
            replay = self._replay_of(size, chunks is not None, kv)
        if replay is None:
            return self._eager(step, kv, reuse)
        replay()
        self._counts.replayed += 1
        shape = (rows, self._limits.vocab)
        found = reuse if reuse is not None and reuse.shape == shape else self._logits.new_empty(shape)
        return found.copy_(self._logits[:rows])

    def _is_decoding(self, step: StepInput) -> bool:
        """Return whether each sequence has one row, all rows draw, and no adapter changes more than projections."""
        rows, lora = len(step.token_ids), step.lora
        if step.own_ids is not None or step.hidden_rows is not None or len(step.logit_rows) != rows:
            return False
        if len(step.attention.block_tables) != rows:
            return False
        chunks = _chunks(lora)
        if chunks is None:
            return not lora.sampled
        if self._known is None or self._known[0] is not chunks.tables:
            own = (segment.adapter.extras for segment in (*lora.segments, *lora.sampled))
            self._known = chunks.tables, all(changes_projections_alone(extras, self._limits.vocab) for extras in own)
        return self._known[1]

    def _replay_of(self, size: int, has_adapters: bool, kv: KvCache) -> Replay | None:
        """Return the replay of a size and kind, captured now if it is the first; None if it cannot be captured."""
        if kv is not self._kv:
            self._kv, self._replays = kv, {}
        key = size, has_adapters
        if key not in self._replays:
            try:
                self._replays[key] = self._captured(size, has_adapters, kv)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                log.warning("steps.not_captured rows=%d with_adapters=%s reason=%s", *key, reason)
                self._replays[key] = None
        return self._replays[key]

    def _captured(self, size: int, has_adapters: bool, kv: KvCache) -> Replay:
        step = self._inputs.step(size, self._image if has_adapters else None)
        logits = self._logits[:size]

        def run() -> None:
            logits.copy_(self._forward(step, kv))
            if self._waits():  # known after the warm-up, before the capture
                raise RuntimeError("experts are multiplied one by one, by numbers that the host reads")

        replay = self._capture.capture(run)
        log.debug("steps.captured rows=%d with_adapters=%s", size, has_adapters)
        return replay


def _chunks(lora: LoraBatch) -> LoraChunks | None:
    return lora.native.host if isinstance(lora.native, StagedLora) else None
