"""The report of an edge's start in the log of its actor, which Ray keeps in files and may send elsewhere."""

import logging

from manylora.server.app.run import Announce

log = logging.getLogger(__name__)


def log_announce() -> Announce:
    """Return callbacks that log the start. The operator's first key is in no line: a command makes another one."""
    return Announce(progress=lambda line: log.info("edge.start %s", line), admin_key=_note_unshown)


def _note_unshown(key: str) -> None:
    log.warning("control.first_key_unshown command=%r", "manylora control admin-key")
