"""The adapters that the configuration wants preloaded and pinned, tried until they are."""

import logging
from collections.abc import Callable, Iterator
from itertools import islice

from manylora.adapter_ref import AdapterRef, SourceName, parse_adapter_name
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.config.groups.adapters import AdaptersConfig
from manylora.config.settings import enabled_sources
from manylora.errors import AdapterReferenceInvalid, ManyloraError

RETRY_S = 1.0
MAX_TRIES = 32
"""Adapters that are tried in one poll: each try asks a source, on the engine's thread."""

log = logging.getLogger(__name__)

ManageAdapter = Callable[[AdapterAction, AdapterRef], AdapterInfo]


class Preloads:
    """Preloads and pins that are tried again until they succeed. An obstacle is logged when it changes.

    A preload has succeeded once its adapter has been on the device, a pin once it is accepted.
    """

    def __init__(self, config: AdaptersConfig, manage: ManageAdapter) -> None:
        self._manage = manage
        # The last obstacle of each, and the time of its last try; the longest untried first.
        self._preloads: dict[tuple[AdapterAction, AdapterRef], tuple[str, float]] = dict.fromkeys(
            configured_acts(config, enabled_sources(config)), ("", float("-inf"))
        )

    def __len__(self) -> int:
        return len(self._preloads)

    @property
    def has_untried(self) -> bool:
        """Return whether one of them has not had its first try."""
        return any(tried_s == float("-inf") for _, tried_s in islice(self._preloads.values(), 1))

    def advance(self, now_s: float) -> None:
        """Try the unfinished ones again, each once in `RETRY_S`, and at most `MAX_TRIES` at once."""
        for (action, ref), (last, tried_s) in list(islice(self._preloads.items(), MAX_TRIES)):
            if now_s - tried_s < RETRY_S:
                return
            del self._preloads[action, ref]
            try:
                info = self._manage(action, ref)
            except ManyloraError as error:
                if error.message != last:
                    log.warning("adapter.%s_delayed adapter=%s error=%s", action, ref, error.message)
                self._preloads[action, ref] = error.message, now_s
                continue
            if not (info.is_pinned if action is AdapterAction.PIN else info.state is AdapterState.ON_DEVICE):
                self._preloads[action, ref] = last, now_s


def configured_acts(
    config: AdaptersConfig, enabled: frozenset[SourceName]
) -> Iterator[tuple[AdapterAction, AdapterRef]]:
    """Yield the configured adapters, the pinned ones first. `enabled`: the sources of the engine."""
    for action, names in ((AdapterAction.PIN, config.pinned), (AdapterAction.PRELOAD, config.preload)):
        for name in names:
            try:
                yield action, parse_adapter_name(name, enabled)
            except AdapterReferenceInvalid as error:  # its source is off; malformed names stop the start
                log.warning("adapter.%s_impossible name=%s error=%s", action, name, error.message)
