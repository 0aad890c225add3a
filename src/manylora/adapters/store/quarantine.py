"""Quarantine: versions with finite weights whose logits were not finite, again and again."""

import logging
from collections import OrderedDict

from manylora.ids import Digest

MAX_REMEMBERED = 4_096

log = logging.getLogger(__name__)


class Quarantine:
    """Versions that no new request gets, after `hits` rows of logits that were not finite; with 0 hits there are none.

    The last `MAX_REMEMBERED` suspected versions are remembered, and as many in quarantine.
    """

    def __init__(self, hits: int) -> None:
        self.hits = hits
        self._suspected: OrderedDict[Digest, int] = OrderedDict()
        self._held: OrderedDict[Digest, None] = OrderedDict()

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def suspect(self, digest: Digest) -> bool:
        """Count a row of a version that was not finite; return whether the version is in quarantine from now on."""
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
