"""The device bank: where adapters lie while rows use them, each at its true rank."""

from collections.abc import Callable, Container
from typing import Protocol

import numpy as np
import torch

from manylora.adapters.packing.image import HostImage
from manylora.adapters.tiers.host import HostTier
from manylora.ids import Digest
from manylora.kernels.interface import PlacedAdapter

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Bank(Protocol):
    """Adapters on the device under a byte budget; what is pinned is never evicted.

    total_bytes, used_bytes   budget, and the true bytes of what is placed or about to be
    used_rows                 rank rows placed: the sum of all ranks of all placed adapters
    """

    total_bytes: int

    @property
    def used_bytes(self) -> int: ...

    @property
    def used_rows(self) -> int: ...

    @property
    def num_placed(self) -> int: ...

    def __contains__(self, digest: object) -> bool: ...

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        """Return the weights of an adapter that is here. Raises `KeyError` if it is not."""

    def reserve(
        self, digest: Digest, num_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()
    ) -> bool:
        """Make room for an adapter about to be read. False, and nothing evicted, if pins or `keep` leave too little."""

    def resize(self, total_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()) -> bool:
        """Change the budget. False, and nothing changed, if pins and `keep` do not fit a smaller one."""

    def place(self, image: HostImage) -> None:
        """Fill a reservation."""

    def remove(self, digest: Digest) -> None:
        """Give back a reservation that came to nothing, or an adapter nobody pins."""

    def pin(self, digest: Digest) -> bool:
        """Hold a placed adapter where it is; False if it is not here."""

    def unpin(self, digest: Digest, *, was_used: bool = True) -> None: ...

    def is_pinned(self, digest: Digest) -> bool: ...

    def num_bytes(self, digest: Digest) -> int:
        """True bytes of an adapter that is here."""

    def erase(self, digest: Digest) -> None:
        """Overwrite an adapter that nobody pins with zeros, and remove it."""

    def rank(self, digest: Digest) -> int:
        """The largest rank of an adapter that is here."""

    def invocation_tokens(self, digest: Digest) -> tuple[int, ...]: ...


class Lender(Protocol):
    """Whoever has memory of the device that is idle for now."""

    def lend(self, num_bytes: int, *, drop_cached: bool) -> int:
        """Return how many bytes are lent, at least `num_bytes`, or 0 if too little is idle.

        `drop_cached` says whether what the lender only keeps in case it is of use again may go for it.
        """


class CpuBank:
    """The bank of a CPU: the image in host memory itself, so that no weight is held twice."""

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._host = HostTier(total_bytes)
        self._placed: dict[Digest, tuple[PlacedAdapter, int]] = {}  # with its rank rows
        self._rows = 0

    @property
    def used_bytes(self) -> int:
        return self._host.shelf.used_bytes

    @property
    def used_rows(self) -> int:
        return self._rows

    @property
    def num_placed(self) -> int:
        return len(self._placed)

    def __contains__(self, digest: object) -> bool:
        return digest in self._placed

    def __getitem__(self, digest: Digest) -> PlacedAdapter:
        return self._placed[digest][0]

    def reserve(
        self, digest: Digest, num_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()
    ) -> bool:
        return self._host.reserve(digest, num_bytes, self._displacing(evict), keep)

    def resize(self, total_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()) -> bool:
        if not self._host.resize(total_bytes, self._displacing(evict), keep):
            return False
        self.total_bytes = total_bytes
        return True

    def _displacing(self, evict: Callable[[Digest], None]) -> Callable[[Digest], None]:
        def displace(victim: Digest) -> None:
            self._rows -= self._placed.pop(victim)[1]
            evict(victim)

        return displace

    def place(self, image: HostImage) -> None:
        dtype = TORCH_DTYPES[image.facts.dtype]
        elements = image.num_bytes // dtype.itemsize
        weights = torch.frombuffer(image.body, dtype=dtype, count=elements) if elements else torch.empty(0, dtype=dtype)
        placed = PlacedAdapter(image.digest, weights, image.table, image.extras)
        self._placed[image.digest] = (placed, image.num_rows)
        self._rows += image.num_rows
        self._host.put(image)

    def remove(self, digest: Digest) -> None:
        assert digest not in self._placed or not self.is_pinned(digest), "a pinned adapter stays"
        self._host.remove(digest)
        if digest in self._placed:
            self._rows -= self._placed.pop(digest)[1]

    def erase(self, digest: Digest) -> None:
        image = self._host.get(digest)
        assert image is not None, "what is erased is here"
        np.frombuffer(image.body, dtype=np.uint8)[:] = 0
        self.remove(digest)

    def pin(self, digest: Digest) -> bool:
        if digest not in self._placed:
            return False
        self._host.shelf.pin(digest)
        return True

    def unpin(self, digest: Digest, *, was_used: bool = True) -> None:
        self._host.shelf.unpin(digest, was_used=was_used)

    def is_pinned(self, digest: Digest) -> bool:
        return self._host.shelf.is_pinned(digest)

    def num_bytes(self, digest: Digest) -> int:
        return self._host.shelf.num_bytes(digest)

    def rank(self, digest: Digest) -> int:
        image = self._host.get(digest)
        return 0 if image is None else image.rank

    def invocation_tokens(self, digest: Digest) -> tuple[int, ...]:
        image = self._host.get(digest)
        return () if image is None else image.invocation_tokens

    def uses(self, digest: Digest) -> int:
        """How often an adapter that is here was used since it was placed."""
        return self._host.shelf.uses(digest)
