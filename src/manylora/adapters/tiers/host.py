"""The host tier: packed images in host memory, beside a device that has memory of its own."""

from collections.abc import Callable, Container, Iterator
from typing import Protocol

import numpy as np

from manylora.adapters.packing.image import HostImage
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.ids import Digest


class Pages(Protocol):
    """The part of a `Bank` that prepares the images of the host tier for copies."""

    def lock_pages(self, image: HostImage) -> None: ...

    def unlock_pages(self, image: HostImage) -> None: ...


class HostTier:
    """Images under a byte budget. One stays here while its adapter is on the device, so that it can return in one copy.

    An image is pinned while it is read and while it is copied to the device. Another may be evicted unless it is the
    only copy that could bring an adapter back to the device: `may_evict` says so.

    on_change  called with each version that is here from now on, or not here any more
    pages      of the device's bank: locks the pages of the images here for its copies
    """

    def __init__(
        self,
        budget_bytes: int,
        *,
        may_evict: Callable[[Digest], bool],
        on_change: Callable[[Digest], None],
        pages: Pages,
    ) -> None:
        self._cache: PinnedCache[Digest] = PinnedCache(budget_bytes)
        self._images: dict[Digest, HostImage] = {}
        self._may_evict = may_evict
        self._pages = pages
        self._on_change = on_change

    def __contains__(self, digest: object) -> bool:
        return digest in self._images

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._images)

    @property
    def budget_bytes(self) -> int:
        return self._cache.budget_bytes

    @property
    def used_bytes(self) -> int:
        """True bytes of the images here and of those that are read."""
        return self._cache.used_bytes

    def get(self, digest: Digest) -> HostImage | None:
        """Return an image if it is here."""
        return self._images.get(digest)

    def reserve(self, digest: Digest, num_bytes: int, spared: Container[Digest] = ()) -> bool:
        """Make room for an image that is about to be read; False if pins and `spared` versions leave too little."""
        return self._cache.reserve(digest, num_bytes, self._evicted, _Kept(spared, self._may_evict))

    def put(self, image: HostImage) -> None:
        """Fill a reservation. Raises `AssertionError` if the image has other bytes than were reserved."""
        if image.num_bytes != (reserved := self._cache.num_bytes(image.digest)):
            raise AssertionError(f"image {image.digest} has {image.num_bytes} bytes, {reserved} were reserved")
        self._images[image.digest] = image
        self._pages.lock_pages(image)
        self._cache.unpin(image.digest)
        self._on_change(image.digest)

    def cancel(self, digest: Digest) -> None:
        """Give back a reservation that no image has filled."""
        self._cache.remove(digest)

    def pin(self, digest: Digest) -> HostImage:
        """Keep an image here while it is copied to the device, and return it."""
        self._cache.pin(digest)
        return self._images[digest]

    def unpin(self, digest: Digest) -> None:
        self._cache.unpin(digest)

    def remove(self, digest: Digest) -> None:
        """Drop an image; nothing happens if it is not here. Raises `AssertionError` if it is being copied."""
        if digest in self._images:
            self._refuse_pinned(digest)
            self._cache.remove(digest)
            self._evicted(digest)

    def erase(self, digest: Digest) -> None:
        """Overwrite an image with zeros and drop it; nothing happens if it is not here. Raises as `remove`."""
        if image := self._images.get(digest):
            self._refuse_pinned(digest)
            np.frombuffer(image.body, dtype=np.uint8)[:] = 0
            self.remove(digest)

    def close(self) -> None:
        """Unlock the pages of all images, which are freed next. No copy of them is under way any more."""
        for image in self._images.values():
            self._pages.unlock_pages(image)
        self._images.clear()

    def _refuse_pinned(self, digest: Digest) -> None:
        if self._cache.is_pinned(digest):
            raise AssertionError(f"image {digest} is copied to the device: it stays in host memory")

    def _evicted(self, digest: Digest) -> None:
        if (image := self._images.pop(digest, None)) is not None:
            self._pages.unlock_pages(image)
            self._on_change(digest)


class _Kept:
    """The versions that may not be evicted: the spared ones, and those that `may_evict` refuses."""

    def __init__(self, spared: Container[Digest], may_evict: Callable[[Digest], bool]) -> None:
        self._spared = spared
        self._may_evict = may_evict

    def __contains__(self, digest: object) -> bool:
        return digest in self._spared or not self._may_evict(Digest(str(digest)))
