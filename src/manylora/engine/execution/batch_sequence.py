"""The part of a sequence that a step's tensors are made of: the scheduler's own sequence has it, and a rank's copy."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from manylora.engine.pooling import PooledRows
from manylora.engine.scheduling.plan import Chunk
from manylora.ids import Digest


class BatchAdapter(Protocol):
    """The adapter of a sequence; `adapter_state.AdapterHandle` describes the members."""

    @property
    def digest(self) -> Digest: ...

    @property
    def has_extras(self) -> bool: ...

    @property
    def weighted(self) -> "Sequence[tuple[BatchAdapter, float]]": ...


class BatchSequence(Protocol):
    """A sequence as `BatchBuilder` reads it; `scheduling.sequence.Sequence` describes the members.

    tokens  at the positions of the step
    pooled  None on a rank that returns no rows
    """

    @property
    def blocks(self) -> list[int]: ...

    @property
    def tokens(self) -> list[int]: ...

    @property
    def block_ids(self) -> "np.ndarray[Any, np.dtype[np.int32]]": ...

    @property
    def placed(self) -> BatchAdapter | None: ...

    @property
    def active_from(self) -> int | None: ...

    @property
    def pooled(self) -> PooledRows | None: ...


S = TypeVar("S", bound=BatchSequence)
Pairs = list[tuple[Chunk, S]]
