"""Ending an edge's metering as a kill of its process would."""

from manylora.server.metering.meter import Meter


def crash(meter: Meter) -> None:
    """What its thread has not begun to write is lost, and nothing is closed but what the system closes."""
    spool = meter._spool
    with spool._lock:
        spool._pending.clear()
    spool._is_closing = True
    spool._wake.set()
    spool._writer.join()
    spool._file.close()
    meter.journal.close()
    for folder in meter._held:
        folder.release()
