"""Journals as formats 1 and 2 had them: an engine's entries and the number of the last frame that its edge had seen."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from manylora.server.metering.append_log import FramedFile
from manylora.server.metering.engine_journal import SEEN


def write_engine_journal(
    folder: Path, life: str, entries: Sequence[tuple[object, ...]], *, seen: int, part: int = 0
) -> Path:
    """Write entries in the order of `engine_journal.Entry`'s fields; format 1 had the first four alone."""
    path = folder / f"engine-{life}-{part:06d}.journal"
    file = FramedFile(path)
    for entry in entries:
        file.append(msgspec.msgpack.encode(entry))
    file.close()
    (folder / f"engine-{life}.seen").write_bytes(SEEN.pack(seen))
    return path
