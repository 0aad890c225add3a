"""The blocks of running sequences: reserved before a step, published after it, freed once no row needs them."""

from collections.abc import Callable

from manylora.engine.scheduling.blocks import BlockPool
from manylora.engine.scheduling.retention import Retention
from manylora.engine.scheduling.sequence import Sequence


class BlockReservations:
    """Moves blocks between the pool and the sequences, of which each holds one reference to each of its blocks.

    Args of the constructor:
        reclaim  takes back this many blocks lent to adapters; False if pinned adapters hold too many of them
    """

    def __init__(self, pool: BlockPool, retention: Retention, reclaim: Callable[[int], bool]) -> None:
        self._pool = pool
        self._retention = retention
        self._reclaim = reclaim

    def begin(self, sequence: Sequence) -> bool:
        """Reserve blocks for the tokens of a sequence without any, reusing cached ones; False if too few are free."""
        size = self._pool.block_size
        most = sequence.num_reusable // size
        first, reused = self._pool.match(lambda index: sequence.prefix_key(index, size), most, self._retention)
        missing = self._wanted(sequence, first) - first - len(reused)
        short = missing - self._pool.free_after_holding(reused)
        if short > 0 and not self._reclaim(short):
            return False
        self._pool.hold(reused)
        sequence.resume_at(first, reused, size)
        sequence.add_blocks(self._allocate(missing))
        return True

    def lacks(self, sequence: Sequence) -> bool:
        """Return whether a sequence has tokens behind its last block."""
        return len(sequence.tokens) > len(sequence.blocks) * self._pool.block_size

    def grow(self, sequence: Sequence) -> bool:
        """Reserve the blocks that a running sequence's next rows need; return False if too few are free."""
        missing = self._wanted(sequence, sequence.released) - len(sequence.blocks)
        short = missing - self._pool.num_free
        if short > 0 and not self._reclaim(short):
            return False
        sequence.add_blocks(self._allocate(missing))
        return True

    def room(self, sequence: Sequence) -> int:
        """Return the number of positions after a sequence's tokens that its own and the free blocks have."""
        return (len(sequence.blocks) + self._pool.num_free) * self._pool.block_size - len(sequence.tokens)

    def extend(self, sequence: Sequence, count: int) -> None:
        """Reserve the blocks of `count` positions after a sequence's tokens; `room` has counted them."""
        wanted = self._retention.blocks_for(len(sequence.tokens) + count)
        sequence.add_blocks(self._allocate(max(0, wanted - len(sequence.blocks))))

    def publish(self, sequence: Sequence) -> None:
        """Enter the full blocks of a sequence in the prefix cache, and free those behind the window.

        Blocks in the prefix cache stay findable when they are freed.
        """
        full = sequence.computed // self._pool.block_size
        if full > sequence.published:
            for index in range(sequence.published, full):
                self._pool.publish(sequence.blocks[index], sequence.prefix_key(index, self._pool.block_size))
            sequence.published = full
        if self._retention.window is not None:
            first = self._retention.first_needed(sequence.computed)
            if first > sequence.released:
                self._pool.release(sequence.take_blocks_before(first))

    def trim(self, sequence: Sequence) -> None:
        """Free the blocks behind a sequence's tokens, which rejected draft tokens leave."""
        self._pool.release(sequence.take_blocks_from(self._retention.blocks_for(len(sequence.tokens))))

    def drop(self, sequence: Sequence) -> None:
        """Free every block of a sequence, which forgets its computed positions."""
        self._pool.release(sequence.drop_blocks())

    def _allocate(self, count: int) -> list[int]:
        """Allocate blocks that are counted as free."""
        blocks = self._pool.allocate(count)
        if blocks is None:
            raise AssertionError("blocks counted as free were not there")
        return blocks

    def _wanted(self, sequence: Sequence, released: int) -> int:
        """Return the blocks of the sequence's tokens, or as far on as it may hold blocks; `released` ones count."""
        every = self._retention.blocks_for(len(sequence.tokens))
        return min(every, released + self._retention.most_blocks(len(sequence.tokens)))
