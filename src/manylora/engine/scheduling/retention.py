"""The blocks that a sequence keeps: all of its own, or with a sliding window those that later rows still read."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The blocks that a sequence needs, as a function of its positions alone.

    block_size  positions of a block
    max_rows    rows of one step, so of one chunk, its draft tokens included
    window      positions that a row sees, itself included, in the layer that sees most; None: all positions before it

    Invariant: with `most_blocks` blocks a sequence of any length computes its next chunk, however long that chunk is.
    """

    block_size: int
    max_rows: int
    window: int | None = None

    def blocks_for(self, num_positions: int) -> int:
        """Return the number of blocks that positions `[0, num_positions)` take."""
        return -(-num_positions // self.block_size)

    def first_needed(self, computed: int) -> int:
        """Return the index of the first block that a row at position `computed`, or any later one, reads."""
        if self.window is None:
            return 0
        return max(0, computed - self.window + 1) // self.block_size

    def most_blocks(self, num_positions: int) -> int:
        """Return the largest number of blocks that a sequence of so many positions holds at once.

        A chunk reads `window - 1` positions before its first row; they may begin at the last slot of a block.
        """
        every = self.blocks_for(num_positions)
        return every if self.window is None else min(every, self.blocks_for(self.window + self.max_rows) + 1)

    def longest(self, num_blocks: int, *, at_most: int) -> int:
        """Return the positions, `at_most` so many, of the longest sequence that `num_blocks` blocks serve alone."""
        return at_most if self.most_blocks(at_most) <= num_blocks else num_blocks * self.block_size
