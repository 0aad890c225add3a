"""The requests in flight at deaths of the engine. For a while, a request of two deaths is refused."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.engine.request import Request
from manylora.errors import EngineFault, ManyloraError, Unavailable

MAX_SUSPECTS = 4096
FATAL_DEATHS = 2
SUSPICION_S = 600.0


@dataclass(slots=True)
class _Record:
    deaths: int
    last_s: float


class Suspects:
    """Counts deaths by a request's content (adapter and prompt), since a client repeats a request under a new id.

    The number of records is bounded; the oldest are dropped first. Each record is dropped ten minutes after its last
    death, since a harmless request may have been in flight at two deaths by chance.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def blame(self, requests: Iterable[Request]) -> None:
        """Count one death for each distinct content of the requests in flight."""
        self._forget_old()
        now_s = self._clock.monotonic_s()
        for key in {_content(request) for request in requests}:
            known = self._records.pop(key, None)
            self._records[key] = _Record(1 + (known.deaths if known else 0), now_s)
        while len(self._records) > MAX_SUSPECTS:
            self._records.popitem(last=False)

    def is_poison(self, request: Request) -> bool:
        if not self._records:  # no hash of the prompt in the usual case
            return False
        self._forget_old()
        record = self._records.get(_content(request))
        return record is not None and record.deaths >= FATAL_DEATHS

    def acquit(self, request: Request) -> None:
        """Drop the record of a request that ended normally."""
        if self._records:
            self._records.pop(_content(request), None)

    def verdict(self, request: Request) -> ManyloraError:
        """Return the error of a request that was in flight at a death."""
        if self.is_poison(request):
            return EngineFault("the engine stopped twice while it worked on this request; it is not tried again")
        return Unavailable("the engine stopped and is being started again; repeat the request")

    def _forget_old(self) -> None:
        """Drop the records that are too old; the dictionary has the order of the last deaths."""
        oldest_s = self._clock.monotonic_s() - SUSPICION_S
        while self._records and next(iter(self._records.values())).last_s < oldest_s:
            self._records.popitem(last=False)


def _content(request: Request) -> bytes:
    digest = hashlib.blake2b(str(request.adapter).encode(), digest_size=16)
    digest.update(repr(request.tokens).encode())
    return digest.digest()
