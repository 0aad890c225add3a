"""The host tier: adapters in host memory under a byte budget."""

from collections.abc import Callable, Container

from manylora.adapters.packing.image import HostImage
from manylora.adapters.tiers.pinned_cache import PinnedCache
from manylora.ids import Digest


class HostTier:
    """Images in host memory, each in its own page-aligned buffer, under a byte budget."""

    def __init__(self, budget_bytes: int) -> None:
        self.shelf: PinnedCache[Digest] = PinnedCache(budget_bytes)
        self._images: dict[Digest, HostImage] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._images

    def __len__(self) -> int:
        return len(self._images)

    def reserve(
        self, digest: Digest, num_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()
    ) -> bool:
        """Make room for an image about to be read; False if what is pinned or kept leaves too little."""

        def forget(victim: Digest) -> None:
            self._images.pop(victim, None)
            evict(victim)

        return self.shelf.reserve(digest, num_bytes, forget, keep)

    def resize(self, budget_bytes: int, evict: Callable[[Digest], None], keep: Container[Digest] = ()) -> bool:
        """Change the budget; False, and nothing changed, if what is pinned or kept does not fit a smaller one."""

        def forget(victim: Digest) -> None:
            self._images.pop(victim, None)
            evict(victim)

        return self.shelf.resize(budget_bytes, forget, keep)

    def put(self, image: HostImage) -> None:
        """Fill a reservation."""
        assert image.num_bytes == self.shelf.num_bytes(image.digest)
        self._images[image.digest] = image
        self.shelf.unpin(image.digest)

    def get(self, digest: Digest) -> HostImage | None:
        return self._images.get(digest)

    def remove(self, digest: Digest) -> None:
        """Drop an image, or give back a reservation that came to nothing."""
        self.shelf.remove(digest)
        self._images.pop(digest, None)
