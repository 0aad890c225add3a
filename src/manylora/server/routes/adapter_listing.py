"""Which adapters a caller may be told of: local ones, and those of remote sources that its tenant has used lately."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from manylora.adapter_ref import FOLDER_SOURCES, AdapterRef
from manylora.clock import Clock
from manylora.engine.events import Finished
from manylora.errors import AdapterNotFound, AdapterReferenceInvalid, ManyloraError
from manylora.server.engine_client.streams import SequenceStream
from manylora.server.generation.models import ModelHandle

MAX_TENANTS = 1_000
MAX_RECENT = 100
MAX_DELETED = 16_384
RECHECK_S = 5.0
QUESTIONS = 64  # at a time: the engine answers all that have come between two steps


class Catalogue:
    """Keeps the last `MAX_RECENT` names of each of the last `MAX_TENANTS` tenants; one never sees another's.

    An operator's delete takes a name away though its source still has it, and another version there brings it back, so
    that the engine is asked for deleted ones: once every `RECHECK_S`, however often the list is.
    """

    def __init__(self, model: ModelHandle, clock: Clock) -> None:
        self._resolver = model.resolver
        self._engine = model.engine
        self._clock = clock
        self._recent: OrderedDict[str, OrderedDict[AdapterRef, None]] = OrderedDict()
        self._deleted: OrderedDict[AdapterRef, float] = OrderedDict()  # when each was last asked for

    async def names(self, tenant: str) -> list[str]:
        """Every name that a request of the tenant's may have: local ones first, then uploads, then recent ones."""
        recent = sorted(self._recent.get(tenant, ()), key=lambda ref: (ref.id, ref.source))
        listed = await self._resolver.listed(tenant, recent)
        gone = await self._gone(list(dict.fromkeys(ref for _, ref in listed if ref in self._deleted)))
        return [name for name, ref in listed if ref not in gone]

    async def find(self, tenant: str, name: str) -> str | None:
        """The spelling in which `names` has a name; None: it means the base model.

        Raises `AdapterNotFound` for what is not listed.
        """
        missing = AdapterNotFound(f"Adapter '{name}' was not found")
        try:
            ref = await self._resolver.resolve(name, tenant=tenant)
        except AdapterReferenceInvalid:
            raise missing from None
        if ref is None:
            return None
        is_near = ref.source in FOLDER_SOURCES
        is_known = await self._resolver.is_served(ref) if is_near else ref in self._recent.get(tenant, ())
        if not is_known or await self._gone([ref] if ref in self._deleted else []):
            raise missing
        return await self._resolver.listed_as(name, ref, tenant)

    async def _gone(self, deleted: Sequence[AdapterRef]) -> set[AdapterRef]:
        """Which of the names that were deleted are so still."""
        gone: set[AdapterRef] = set()
        for start in range(0, len(deleted), QUESTIONS):
            some = deleted[start : start + QUESTIONS]
            are_there = await asyncio.gather(*map(self._is_there, some))
            gone |= {ref for ref, is_there in zip(some, are_there, strict=True) if not is_there}
        return gone

    def note(self, stream: SequenceStream, finished: Finished) -> None:
        """A sequence has ended; what never ran does not count, so that a wrong name is not listed.

        Nor do sources that are listed anew each time: an upload may be anybody's no more, or somebody else's.
        """
        ref = stream.request.adapter
        if ref is None or ref.merge is not None or ref.source in FOLDER_SOURCES or finished.queue_ms is None:
            return
        refs = self._recent.setdefault(stream.request.flow, OrderedDict())
        self._recent.move_to_end(stream.request.flow)
        named = replace(ref, token="")
        refs[named] = None
        refs.move_to_end(named)
        if len(refs) > MAX_RECENT:
            refs.popitem(last=False)
        if len(self._recent) > MAX_TENANTS:
            self._recent.popitem(last=False)

    def note_deleted(self, ref: AdapterRef) -> None:
        self._deleted[replace(ref, token="")] = self._clock.monotonic_s()
        if len(self._deleted) > MAX_DELETED:
            self._deleted.popitem(last=False)

    async def _is_there(self, ref: AdapterRef) -> bool:
        """Whether a name is known, as far as deleting goes."""
        asked_s, now_s = self._deleted.get(ref), self._clock.monotonic_s()
        if asked_s is None:
            return True
        if now_s - asked_s < RECHECK_S:
            return False
        self._deleted[ref] = now_s
        try:
            info = await self._engine.info(ref)
        except ManyloraError:
            return False
        if info.is_deleted:
            return False
        self._deleted.pop(ref, None)
        return True
