"""Lends idle KV memory to the adapters and takes it back when sequences need it."""

from collections.abc import Callable

from manylora.engine.scheduling.blocks import BlockPool
from manylora.kernels.operands import KvCache


class KvLender:
    """Lends whole blocks off the end of the pool.

    kept_blocks  blocks that are never lent: as many as one sequence holds at most. So one sequence of a full context
                 fits whatever is pinned on the device, and the oldest running sequence never waits for an unpin
    """

    def __init__(self, pool: BlockPool, kv: KvCache, *, kept_blocks: int) -> None:
        self._pool = pool
        self._kv = kv
        self._kept_blocks = kept_blocks
        self._block_bytes = kv.num_bytes // kv.num_blocks

    def lend(self, num_bytes: int, *, drop_cached: bool) -> int:
        """Lend memory and return its size in bytes, at least `num_bytes`; return 0, unchanged, if too little is idle.

        `drop_cached`: whether the prefix cache may forget prompts whose blocks no sequence holds.
        """
        count = -(-num_bytes // self._block_bytes)
        if count > self._pool.num_blocks - self._pool.num_lent - self._kept_blocks:
            return 0
        blocks = self._pool.lend(count, drop_cached=drop_cached)
        if blocks is None:
            return 0
        # The whole lent range is discarded: a page across two loans belongs to neither alone.
        if not self._kv.discard(blocks.start, self._pool.num_blocks):
            self._pool.take_back(count)
            return 0
        return count * self._block_bytes

    def take_back(self, count: int, give_back: Callable[[int], bool]) -> bool:
        """Take `count` blocks back into the pool if `give_back` frees their bytes; return whether it did."""
        if count > self._pool.num_lent or not give_back(count * self._block_bytes):
            return False
        self._pool.take_back(count)
        return True
