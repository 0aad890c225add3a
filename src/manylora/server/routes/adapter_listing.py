"""The adapters in a caller's lists: local ones, uploads, and remote ones that its tenant has used lately."""

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
from manylora.server.generation.routing import ModelRouter

MAX_TENANTS = 1_000
MAX_RECENT = 100
MAX_DELETED = 16_384
RECHECK_S = 5.0
QUESTIONS = 64  # questions at a time; the engine answers all received questions between two steps


class Catalogue:
    """Keeps the last `MAX_RECENT` names of each of the last `MAX_TENANTS` tenants, separately for each tenant.

    A deleted name stays hidden while its source keeps the old version, and returns with a new version. The catalogue
    therefore asks the engine again for deleted names, at most once per `RECHECK_S` seconds.
    """

    def __init__(self, models: ModelRouter, clock: Clock) -> None:
        self._models = models
        self._resolver = models.resolver
        self._clock = clock
        self._recent: OrderedDict[str, OrderedDict[AdapterRef, None]] = OrderedDict()
        self._deleted: OrderedDict[AdapterRef, float] = OrderedDict()  # the moment of the last question for each

    async def listed(self, tenant: str) -> list[tuple[str, ModelHandle | None]]:
        """Return every name that a tenant's request may use, with its base: local ones, then uploads, then recent ones.

        The base is None for an adapter that declares none of the served ones and that no request has used.
        """
        recent = sorted(self._recent.get(tenant, ()), key=lambda ref: (ref.id, ref.source))
        listed = await self._resolver.listed(tenant, recent)
        gone = await self._gone(list(dict.fromkeys(ref for _, ref in listed if ref in self._deleted)))
        left = [(name, ref) for name, ref in listed if ref not in gone]
        bases = await self._models.bases.expected([ref for _, ref in left])
        return [(name, base) for (name, _), base in zip(left, bases, strict=True)]

    async def find(self, tenant: str, name: str) -> tuple[str, ModelHandle | None] | None:
        """Return the spelling of a name in `listed`, with its base; None for a name of a base model.

        Raises `AdapterNotFound` for a name that is not listed.
        """
        missing = AdapterNotFound(f"Adapter '{name}' was not found")
        asked, name = await self._models.split(name, tenant)
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
        [base] = await self._models.bases.expected([ref])
        if asked is not None and base not in (None, asked):
            raise missing
        return await self._resolver.listed_as(name, ref, tenant), base or asked

    async def _gone(self, deleted: Sequence[AdapterRef]) -> set[AdapterRef]:
        """Return the deleted adapters among `deleted` that have not come back."""
        gone: set[AdapterRef] = set()
        for start in range(0, len(deleted), QUESTIONS):
            some = deleted[start : start + QUESTIONS]
            are_there = await asyncio.gather(*map(self._is_there, some))
            gone |= {ref for ref, is_there in zip(some, are_there, strict=True) if not is_there}
        return gone

    def note(self, stream: SequenceStream, finished: Finished) -> None:
        """Remember the adapter of a sequence that has ended.

        A sequence that never ran does not count, so that a wrong name is not listed. Local adapters and uploads do not
        count either, since each list looks them up anew.
        """
        ref = stream.request.adapter
        if (
            ref is None
            or ref.merge is not None
            or ref.mix is not None
            or ref.source in FOLDER_SOURCES
            or finished.queue_ms is None
        ):
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
        """Return whether the engine does not have an adapter as deleted."""
        asked_s, now_s = self._deleted.get(ref), self._clock.monotonic_s()
        if asked_s is None:
            return True
        if now_s - asked_s < RECHECK_S:
            return False
        self._deleted[ref] = now_s
        try:
            info = await (self._models.bases.known(ref) or self._models.default).engine.info(ref)
        except ManyloraError:
            return False
        if info.is_deleted:
            return False
        self._deleted.pop(ref, None)
        return True
