"""Which requests were in flight when the engine died: one seen at two deaths is not tried a third time."""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable

from manylora.engine.request import Request
from manylora.errors import EngineFault, ManyloraError, Unavailable

MAX_SUSPECTS = 4096
FATAL_DEATHS = 2


class Suspects:
    """Counts deaths by the content of a request (adapter and prompt), since a client repeats it under a new id.

    It is bounded: the oldest suspects are forgotten first, and all of them when the engine process is replaced by an
    operator's restart of the server.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, int] = OrderedDict()

    def blame(self, requests: Iterable[Request]) -> None:
        """Note one death with these requests in flight; equal ones count once."""
        for key in Counter(_content(request) for request in requests):
            self._deaths[key] = self._deaths.pop(key, 0) + 1
        while len(self._deaths) > MAX_SUSPECTS:
            self._deaths.popitem(last=False)

    def is_poison(self, request: Request) -> bool:
        return bool(self._deaths) and self._deaths.get(_content(request), 0) >= FATAL_DEATHS

    def acquit(self, request: Request) -> None:
        """A request that ended normally is under no suspicion."""
        if self._deaths:
            self._deaths.pop(_content(request), None)

    def verdict(self, request: Request) -> ManyloraError:
        """The error for a request that was in flight at a death."""
        if self.is_poison(request):
            return EngineFault("the engine stopped twice while it worked on this request; it is not tried again")
        return Unavailable("the engine stopped and is being started again; repeat the request")


def _content(request: Request) -> bytes:
    digest = hashlib.blake2b(str(request.adapter).encode(), digest_size=16)
    digest.update(repr(request.tokens).encode())
    return digest.digest()
