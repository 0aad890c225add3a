"""Which requests were in flight when the engine died: one seen at two deaths is not tried a third time, for a while."""

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
    """Counts deaths by the content of a request (adapter and prompt), since a client repeats it under a new id.

    It is bounded: the oldest suspects are forgotten first, and each ten minutes after its last death, since an innocent
    request may have been beside the guilty one twice.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def blame(self, requests: Iterable[Request]) -> None:
        """Note one death with these requests in flight; equal ones count once."""
        self._forget_old()
        now_s = self._clock.monotonic_s()
        for key in {_content(request) for request in requests}:
            known = self._records.pop(key, None)
            self._records[key] = _Record(1 + (known.deaths if known else 0), now_s)
        while len(self._records) > MAX_SUSPECTS:
            self._records.popitem(last=False)

    def is_poison(self, request: Request) -> bool:
        if not self._records:  # the usual case must not pay for a hash of the prompt
            return False
        self._forget_old()
        record = self._records.get(_content(request))
        return record is not None and record.deaths >= FATAL_DEATHS

    def acquit(self, request: Request) -> None:
        """A request that ended normally is under no suspicion."""
        if self._records:
            self._records.pop(_content(request), None)

    def verdict(self, request: Request) -> ManyloraError:
        """The error for a request that was in flight at a death."""
        if self.is_poison(request):
            return EngineFault("the engine stopped twice while it worked on this request; it is not tried again")
        return Unavailable("the engine stopped and is being started again; repeat the request")

    def _forget_old(self) -> None:
        """Records lie in the order of their last death."""
        oldest_s = self._clock.monotonic_s() - SUSPICION_S
        while self._records and next(iter(self._records.values())).last_s < oldest_s:
            self._records.popitem(last=False)


def _content(request: Request) -> bytes:
    digest = hashlib.blake2b(str(request.adapter).encode(), digest_size=16)
    digest.update(repr(request.tokens).encode())
    return digest.digest()
