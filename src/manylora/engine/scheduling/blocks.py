"""Paged KV blocks: the holders of each block, and the blocks that a new prompt can reuse."""

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from manylora.engine.scheduling.retention import Retention

PrefixKey = bytes
"""Names the content of a block and of everything before it: the chain of hashes from a root."""


def prefix_root(digest: str, salt: str) -> PrefixKey:
    """Return the start of a chain of prefix keys.

    One root per (adapter digest, isolation salt): the keys and values of one adapter, or of one tenant, can never be
    found by another. The base model's digest is the empty string.
    """
    return blake2b(f"{len(digest)}:{digest}{salt}".encode(), digest_size=16).digest()


def next_key(parent: PrefixKey, tokens: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> PrefixKey:
    """Return the key of the block that holds `tokens`, after the blocks that `parent` names."""
    return blake2b(parent + tokens.tobytes(), digest_size=16).digest()


def joined_key(parent: PrefixKey, root: PrefixKey) -> PrefixKey:
    """Return the parent of the first block that an adapter takes part in, after blocks that were the base's."""
    return blake2b(b"joined" + parent + root, digest_size=16).digest()


class BlockPool:
    """Reference-counted blocks with a prefix cache over the unreferenced ones.

    A block is *held* (references > 0), *free*, or *lent*: out of the pool, while its memory is used for something else.
    A free block may still be *cached*: its content stays findable by its key until the block is given to someone else,
    least recently freed first. Held blocks can be cached as well.
    Invariant (`check`): held + free + lent == num_blocks, and every cached key names a block whose key it is.
    """

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_lent = 0  # the last ones, so that what is lent is one stretch of memory
        self._prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._keys: list[PrefixKey | None] = [None] * num_blocks
        self._by_key: dict[PrefixKey, int] = {}
        # Free blocks, the next to be given away first; an OrderedDict because a cached one leaves from the middle.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Free blocks whose content could still be reused."""
        return sum(1 for block in self._free if self._keys[block] is not None)

    def match(self, key_of: Callable[[int], PrefixKey], count: int, retention: Retention) -> tuple[int, list[int]]:
        """Return the cached blocks from which a sequence can go on, as far on as possible: (first, blocks).

        Semantics:  n ≤ count is the largest number for which all blocks in [first, n) are cached, where first is the
                    first block that the row after block n reads; the result is first and these blocks, or (0, []).
        Without a sliding window first is 0. With one the blocks before `first` need not be cached: a key names all
        tokens before its block too, so that the content does not depend on them.
        Args:        key_of  the key of a block by its index in the sequence; called for no block after the first one
                     that is not cached, if there is no sliding window
        Complexity:  O(count)
        """
        if retention.window is None:
            return 0, self._run(key_of, count)
        stop, found = count, list[int]()  # found: the blocks before `stop`, the last one first
        for index in reversed(range(count)):
            first = min(stop - 1, retention.first_needed(stop * self.block_size))
            if stop - len(found) == first:
                break
            block = self._by_key.get(key_of(index))
            if block is None:
                stop, found = index, []
            else:
                found.append(block)
        return stop - len(found), found[::-1]

    def _run(self, key_of: Callable[[int], PrefixKey], count: int) -> list[int]:
        """Return the blocks of the longest run of keys, from the first one, that is cached."""
        found: list[int] = []
        while len(found) < count and (block := self._by_key.get(key_of(len(found)))) is not None:
            found.append(block)
        return found

    def free_after_holding(self, blocks: list[int]) -> int:
        """Return how many blocks would stay free if `blocks` were held."""
        return len(self._free) - sum(1 for block in blocks if self._references[block] == 0)

    def hold(self, blocks: list[int]) -> None:
        """Add one reference to each block."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks with one reference each, or None (and change nothing) if fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self._forget(block)
            self._references[block] = 1
        return taken

    def release(self, blocks: list[int]) -> None:
        """Take one reference from each block.

        The last block of a sequence is freed first, so that the start of a prompt, which more requests share,
        outlives its end. Blocks without cached content are given away before any cached one.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def publish(self, block: int, key: PrefixKey) -> None:
        """Make a held, fully computed block findable. If its content is cached already, the older copy stays."""
        if self._prefix_cache and key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def lend(self, count: int, *, drop_cached: bool) -> range | None:
        """Take the last `count` blocks of the pool out of it. None (and change nothing) if one of them is held.

        Nor is one lent that is cached, unless `drop_cached` says that its content may be forgotten.
        """
        stop = self.num_blocks - self.num_lent
        blocks = range(stop - count, stop)
        if count > stop or any(
            self._references[block] > 0 or (self._keys[block] is not None and not drop_cached) for block in blocks
        ):
            return None
        for block in blocks:
            self._forget(block)
            del self._free[block]
        self.num_lent += count
        return blocks

    def take_back(self, count: int) -> None:
        """Put the `count` blocks that were lent last into the pool again; they are the first to be given away."""
        first = self.num_blocks - self.num_lent
        for block in reversed(range(first, first + count)):
            self._free[block] = None
            self._free.move_to_end(block, last=False)
        self.num_lent -= count

    def check(self) -> None:
        """Raise AssertionError if a block was lost or counted twice; for tests and for an idle engine."""
        held = sum(1 for references in self._references if references > 0)
        assert min(self._references, default=0) >= 0, "a block was released more often than held"
        counted = held + len(self._free) + self.num_lent
        assert counted == self.num_blocks, f"{held} held + {len(self._free)} free + {self.num_lent} lent != all"
        assert all(block < self.num_blocks - self.num_lent for block in self._free), "a lent block is free"
        assert all(self._references[block] == 0 for block in self._free), "a free block is held"
        assert all(self._keys[block] == key for key, block in self._by_key.items()), "a cached key names another block"

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None
