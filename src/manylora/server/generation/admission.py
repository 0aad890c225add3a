"""Admission control: a limit on the sequences under way, a fair share of it for each tenant, and draining."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from manylora.errors import InvalidParameter, Overloaded, Unavailable
from manylora.ids import TenantId
from manylora.sharing import has_place


class AdmissionControl:
    """Counts the sequences under way and refuses those above a limit. It belongs to one event loop.

    is_draining  whether to refuse every new request; the caller sets it
    """

    def __init__(self, limit: int) -> None:
        """`limit` is the largest number of sequences at one time."""
        self.num_sequences = 0
        self.is_draining = False
        self._limit = limit
        self._held: Counter[TenantId] = Counter()  # number of sequences by tenant; no entry for none
        self._left = asyncio.Event()  # set at each release of a place

    @contextmanager
    def admit(self, tenant: TenantId, num_sequences: int, *, is_batch: bool = False) -> Iterator[None]:
        """Hold a place for each sequence. Lines of batches have half of the places at most.

        Raises `Overloaded` when no place is left for the tenant (see `sharing`), `Unavailable` while the server drains,
        `InvalidParameter` for more sequences than there are places.
        """
        if self.is_draining:
            raise Unavailable("the server is shutting down; repeat the request")
        if num_sequences > self._limit:
            raise InvalidParameter(f"the request asks for {num_sequences} sequences; the limit is {self._limit}")
        held = self._held[tenant]
        limit = max(self._limit // 2, num_sequences) if is_batch else self._limit
        if not has_place(held=held, taken=self.num_sequences, wanted=num_sequences, limit=limit):
            raise Overloaded("Model is overloaded")
        self._count(tenant, num_sequences)
        try:
            yield
        finally:
            self._count(tenant, -num_sequences)
            self._left.set()

    def _count(self, tenant: TenantId, change: int) -> None:
        self.num_sequences += change
        self._held[tenant] += change
        if not self._held[tenant]:
            del self._held[tenant]

    async def emptied(self) -> None:
        """Wait until no sequence is under way."""
        while self.num_sequences:
            self._left.clear()
            await self._left.wait()
