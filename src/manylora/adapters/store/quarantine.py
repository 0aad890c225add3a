"""Quarantine: versions whose weights are finite and whose results are not, again and again."""

import logging
from collections import OrderedDict

from manylora.ids import Digest

MAX_REMEMBERED = 4_096

log = logging.getLogger(__name__)


class Quarantine:
    """Versions that no new request gets. `hits` rows that were not finite bring one there; 0 hits: none ever is.

    Of the versions that were suspected, and of those in quarantine, the last `MAX_REMEMBERED` are remembered.
    """

    def __init__(self, hits: int) -> None:
        self.hits = hits
        self._suspected: OrderedDict[Digest, int] = OrderedDict()
        self._held: OrderedDict[Digest, None] = OrderedDict()

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def suspect(self, digest: Digest) -> bool:
        """Count a row of a version that was not finite; whether that brings it into quarantine."""
        if self.hits == 0 or digest in self._held:
            return False
        count = self._suspected.pop(digest, 0) + 1
        if count < self.hits:
            self._suspected[digest] = count
            if len(self._suspected) > MAX_REMEMBERED:
                self._suspected.popitem(last=False)
            return False
        self._held[digest] = None
        if len(self._held) > MAX_REMEMBERED:
            self._held.popitem(last=False)
        log.warning("adapter.quarantined digest=%s hits=%d", digest, count)
        return True
