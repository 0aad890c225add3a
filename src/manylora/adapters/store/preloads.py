"""Standing orders: what the configuration wants preloaded and pinned, tried until it is so."""

import logging
from collections.abc import Callable, Iterator
from itertools import islice

from manylora.adapter_ref import AdapterRef, parse_adapter_name
from manylora.adapter_state import AdapterAction, AdapterInfo, AdapterState
from manylora.config.groups.adapters import AdaptersConfig
from manylora.config.settings import enabled_sources
from manylora.errors import AdapterReferenceInvalid, ManyloraError

RETRY_S = 1.0
MAX_TRIES = 32
"""Orders that are tried in one poll: each looks at its source, on the engine's thread."""

log = logging.getLogger(__name__)

ManageAdapter = Callable[[AdapterAction, AdapterRef], AdapterInfo]


class Preloads:
    """Orders that are repeated until they are carried out. What is in the way is logged when it changes.

    A preload is carried out once its adapter is on the device, whatever becomes of it then; a pin once it is taken.
    """

    def __init__(self, config: AdaptersConfig, manage: ManageAdapter) -> None:
        self._manage = manage
        # What was last in the way of each, and when that was; the one that was tried longest ago first.
        self._preloads: dict[tuple[AdapterAction, AdapterRef], tuple[str, float]] = dict.fromkeys(
            _preloads(config), ("", float("-inf"))
        )

    def __len__(self) -> int:
        return len(self._preloads)

    @property
    def has_untried(self) -> bool:
        """Whether some order has not had its first try."""
        return any(tried_s == float("-inf") for _, tried_s in islice(self._preloads.values(), 1))

    def advance(self, now_s: float) -> None:
        """Try again what is not done, once in `RETRY_S`, and no more than `MAX_TRIES` at once."""
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


def _preloads(config: AdaptersConfig) -> Iterator[tuple[AdapterAction, AdapterRef]]:
    """The configured names, the pinned ones first."""
    enabled = enabled_sources(config)
    for action, names in ((AdapterAction.PIN, config.pinned), (AdapterAction.PRELOAD, config.preload)):
        for name in names:
            try:
                yield action, parse_adapter_name(name, enabled)
            except AdapterReferenceInvalid as error:  # its source is switched off; what is malformed did not get here
                log.warning("adapter.%s_impossible name=%s error=%s", action, name, error.message)
