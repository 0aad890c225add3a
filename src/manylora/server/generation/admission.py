"""Admission control: a limit on the sequences under way, a fair share of it for each tenant, and draining.

A request with more sequences than it has places runs them in waves: as one sequence ends, the next one begins.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from manylora.errors import InvalidParameter, Overloaded, Unavailable
from manylora.ids import TenantId
from manylora.sharing import has_place

MAX_SEQUENCES = 2048
"""Sequences of one request, over all of its waves; the length of OpenAI's longest list of inputs."""
WAVE_DIVISOR = 2
"""Divisor of the limit: one request has that part of the places at most, so that others of its tenant find some."""
MAX_WAITING_SIZE = 2**23
"""Characters, or tokens, of the prompts of all requests that have more sequences than places; bounds their memory."""


class AdmissionControl:
    """Counts the sequences under way and refuses those above a limit. It belongs to one event loop.

    is_draining  whether to refuse every new request; the caller sets it
    """

    def __init__(self, limit: int, *, max_waiting: int | None = None) -> None:
        """Start with all places free.

        Args:  limit        largest number of sequences at one time
               max_waiting  the engine's limit on requests that wait, which one request may fill by half
        """
        self.num_sequences = 0
        self.is_draining = False
        self._limit = limit
        narrow = limit if max_waiting is None else min(limit, max_waiting)
        self._largest_wave = max(1, narrow // WAVE_DIVISOR)
        self._held: Counter[TenantId] = Counter()  # number of sequences by tenant; no entry for none
        self._size = 0  # of the prompts of requests with more sequences than places
        self._sizes: Counter[TenantId] = Counter()  # the same by tenant; no entry for none
        self._left = asyncio.Event()  # set at each release of a place

    @contextmanager
    def admit(self, tenant: TenantId, num_sequences: int, *, is_batch: bool = False) -> Iterator[None]:
        """Hold a place for each sequence. Lines of batches have half of the places at most.

        Raises `Overloaded` when no place is left for the tenant (see `sharing`), `Unavailable` while the server drains.
        """
        if self.is_draining:
            raise Unavailable("the server is shutting down; repeat the request")
        if not self._has_place(tenant, num_sequences, is_batch=is_batch):
            raise Overloaded("Model is overloaded")
        self._count(tenant, num_sequences)
        try:
            yield
        finally:
            self._count(tenant, -num_sequences)
            self._left.set()

    def wave_of(self, tenant: TenantId, num_sequences: int, *, is_batch: bool = False) -> int:
        """Return the number of a request's sequences that may be under way at one time, at least 1 of any.

        Raises `InvalidParameter` for more than `MAX_SEQUENCES` sequences.
        """
        if num_sequences > MAX_SEQUENCES:
            raise InvalidParameter(f"the request asks for {num_sequences} sequences; the limit is {MAX_SEQUENCES}")
        wave = min(num_sequences, self._largest_wave)
        while wave > 1 and not self._has_place(tenant, wave, is_batch=is_batch):
            wave -= 1
        return wave

    @contextmanager
    def hold_prompts(self, tenant: TenantId, size: int) -> Iterator[None]:
        """Count the prompts of a request with more sequences than places, before they become tokens.

        Args:    size  characters of texts, and tokens of prompts that are tokens
        Raises:  `Overloaded` while those of other requests leave too little, `InvalidParameter` for too large ones
        """
        if size > MAX_WAITING_SIZE:
            raise InvalidParameter(
                f"the prompts have {size} characters and tokens together; the limit is {MAX_WAITING_SIZE}"
            )
        if not has_place(held=self._sizes[tenant], taken=self._size, wanted=size, limit=MAX_WAITING_SIZE):
            raise Overloaded("Model is overloaded")
        self._count_prompts(tenant, size)
        try:
            yield
        finally:
            self._count_prompts(tenant, -size)

    def _count_prompts(self, tenant: TenantId, change: int) -> None:
        self._size += change
        self._sizes[tenant] += change
        if not self._sizes[tenant]:
            del self._sizes[tenant]

    def _has_place(self, tenant: TenantId, wanted: int, *, is_batch: bool) -> bool:
        limit = max(1, self._limit // 2) if is_batch else self._limit
        return has_place(held=self._held[tenant], taken=self.num_sequences, wanted=wanted, limit=limit)

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
