"""Captured steps: the sizes that a back end captures once and replays, and the counts of both ways. Without torch."""

from dataclasses import dataclass

_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
_MORE_ROWS = 32
"""Beyond the last of `_ROWS` each size is so many rows larger than the one before."""
_LAUNCHES, _LAUNCH_BYTES = 20, 4096
"""Launches of a block in a graph, and the bytes of each: estimates, not measurements."""
_MIXED = 8
"""Adapters beyond one a row in a captured step."""
KINDS = 2
"""Graphs of each size: without adapters and with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """The largest captured step, whose rows are of one sequence each and all draw a token.

    max_rows       rows; the sizes are `captured_rows(max_rows)`
    max_positions  positions of a sequence
    block_size     positions of a block
    vocab          tokens of the base
    layers         blocks of the base
    width          projections of a block in the table of an adapter
    max_rank       the largest rank of an adapter; a step with a larger one is not captured
    """

    max_rows: int
    max_positions: int
    block_size: int
    vocab: int
    layers: int
    width: int
    max_rank: int

    @property
    def max_blocks(self) -> int:
        """Blocks of a sequence of `max_positions`."""
        return -(-self.max_positions // self.block_size)

    @property
    def num_graphs(self) -> int:
        """Graphs of all sizes and kinds."""
        return KINDS * len(captured_rows(self.max_rows))

    @property
    def num_bytes(self) -> int:
        """Bytes of the inputs that stay where they are, and of the graphs; not of the rows between operations."""
        rows = captured_rows(self.max_rows)[-1]
        adapters = self.max_items * (5 * 8 * self.layers * self.width + 5 * 4)
        return rows * (4 * self.max_blocks + 64) + adapters + self.num_graphs * self.layers * _LAUNCHES * _LAUNCH_BYTES

    @property
    def max_items(self) -> int:
        """Pairs of an adapter and its rows in a step of the most rows."""
        return items_of(captured_rows(self.max_rows)[-1])


@dataclass(slots=True)
class StepCounts:
    """Steps since the start that a back end replayed, and those that it computed operation by operation."""

    replayed: int = 0
    eager: int = 0


def captured_rows(max_rows: int) -> tuple[int, ...]:
    """Return the numbers of rows that are captured, ascending; the last one is `max_rows` or more."""
    sizes = [rows for rows in _ROWS if rows < max_rows]
    last = sizes[-1] if sizes else 0
    while last < max_rows:
        last = next((rows for rows in _ROWS if rows > last), last + _MORE_ROWS)
        sizes.append(last)
    return tuple(sizes)


def items_of(rows: int) -> int:
    """Return the pairs of an adapter and its rows in a captured step: a row of a mix has several, other rows one."""
    return rows + _MIXED


def row_items_of(rows: int) -> int:
    """Return the most adapters of one row of a captured step, each other row of which has one."""
    return items_of(rows) - rows + 1
