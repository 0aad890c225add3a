"""Which adapters of remote sources each tenant has used lately: local ones can be listed, these cannot."""

from collections import OrderedDict

from manylora.adapter_ref import SourceName
from manylora.engine.events import Finished
from manylora.server.generation import Generation

MAX_TENANTS = 1_000
MAX_ADAPTERS = 100


class RecentAdapters:
    """The last `MAX_ADAPTERS` names of each of the last `MAX_TENANTS` tenants. One tenant never sees another's."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()

    def note(self, generation: Generation, finished: Finished) -> None:
        """A sequence has ended; what never ran does not count, so that a wrong name is not listed."""
        ref = generation.request.adapter
        if ref is None or ref.merge is not None or ref.source is SourceName.LOCAL or finished.queue_ms is None:
            return
        names = self._tenants.setdefault(generation.request.flow, OrderedDict())
        self._tenants.move_to_end(generation.request.flow)
        names[ref.id] = None
        names.move_to_end(ref.id)
        if len(names) > MAX_ADAPTERS:
            names.popitem(last=False)
        if len(self._tenants) > MAX_TENANTS:
            self._tenants.popitem(last=False)

    def names(self, tenant: str) -> list[str]:
        """In alphabetical order."""
        return sorted(self._tenants.get(tenant, ()))

    def forget(self, adapter_id: str) -> None:
        """An operator has deleted it."""
        for names in self._tenants.values():
            names.pop(adapter_id, None)
