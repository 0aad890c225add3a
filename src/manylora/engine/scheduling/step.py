"""The bounds of one step, and a step while it is planned."""

from dataclasses import dataclass, field
from math import inf

from manylora.engine.scheduling.plan import Chunk
from manylora.engine.scheduling.work import RowWork, StepWork
from manylora.ids import RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The bounds of one step.

    max_rows          rows of one step
    max_running       sequences under way at once
    max_draft_tokens  draft tokens of one sequence in one step; 0: no speculation
    draft_width       sequences that draw a token in one step; if more do, the step has no draft tokens
    sliding_window    positions that a row sees, itself included, in the layer that sees most; None: all before it
    batch_rows        rows of batch sequences in one step, so that an interactive request waits for a short step
    row_work          work of a row; without any for attention `max_rows` alone bounds a step
    max_scored_rows   positions of prompts scored in one step; bounds the memory of their logits
    max_gap_steps     time of a step with prompts beside interactive sequences that decode, in steps of these alone
    """

    max_rows: int
    max_running: int
    batch_rows: int = 64
    max_draft_tokens: int = 0
    draft_width: int = 0
    sliding_window: int | None = None
    row_work: RowWork = field(default_factory=RowWork)
    max_scored_rows: int = 64
    max_gap_steps: float = inf


@dataclass(slots=True)
class Step:
    """A step while it is planned.

    work         what its rows may still cost
    scored_rows  positions of prompts that the step may still score
    refuses      whether some interactive sequence lacks room for its adapter
    is_full      whether the next sequence to admit lacks a place or blocks, so that none behind it is admitted
    """

    work: StepWork
    scored_rows: int
    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[RequestId] = field(default_factory=list)
    preempted: list[RequestId] = field(default_factory=list)
    refuses: bool = False
    is_full: bool = False
