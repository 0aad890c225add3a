"""The reader of journals that engines of format 2 and older wrote; it serves to settle their requests.

    engine-<life>-<part>.journal    counts of one engine process, written before the edge received the tokens
    engine-<life>.seen              number of the last frame that the edge received (8 bytes, little-endian)

The engine counted the tokens of later frames, but the edge did not deliver them.
"""

import contextlib
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from manylora import __version__
from manylora.ids import RequestId
from manylora.server.metering.append_log import newer_usage, read_entries
from manylora.server.metering.counted import Counted

SEEN = struct.Struct("<Q")
_PART = re.compile(r"engine-([0-9a-f]{16})-([0-9]{6})\.journal")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """The counts of one frame.

    number  number of the frame, from 1
    opened  (index, request id, prompt tokens, tokens committed before) of new requests; a part's first entry has all
    tokens  index of the request of each token committed
    ended   (index, prompt tokens, cached tokens, completion tokens)
    cut     (index, prompt positions computed, reason) of ended requests whose caller had left; not in format 1
    cached  (index, cached tokens) of requests with their first token in this frame; not in format 1
    """

    number: int
    opened: list[tuple[int, str, int, int]]
    tokens: list[int]
    ended: list[tuple[int, int, int, int]]
    cut: list[tuple[int, int, str]] = []
    cached: list[tuple[int, int]] = []


_decode = msgspec.msgpack.Decoder(Entry).decode


def read_engine_journal(folder: Path, life: str) -> dict[RequestId, Counted]:
    """Return the counts of one engine process; empty if its journal has no entries.

    Raises `DataTooNew` for an entry of a form that this program does not know.
    """
    seen = _seen(folder, life)
    found: dict[RequestId, Counted] = {}
    ids: dict[int, RequestId] = {}
    for path in _parts_of(folder, life):
        for entry in _entries(path):
            for index, request_id, prompt_tokens, before in entry.opened:
                ids[index] = RequestId(request_id)
                # A part repeats the requests of the part before. Tokens of a deleted part were all received.
                found.setdefault(ids[index], Counted(prompt_tokens, committed=before, delivered=before))
            _add(entry, found, ids, is_seen=entry.number <= seen)
    return found


def _add(entry: Entry, found: dict[RequestId, Counted], ids: dict[int, RequestId], *, is_seen: bool) -> None:
    for index in entry.tokens:
        counted = found[ids[index]]
        counted.committed += 1
        counted.delivered += is_seen
    for index, cached_tokens in entry.cached:
        found[ids[index]].cached_tokens = cached_tokens
    for index, prompt_tokens, cached_tokens, completion_tokens in entry.ended:
        counted = found[ids[index]]
        counted.prompt_tokens, counted.cached_tokens = prompt_tokens, cached_tokens
        counted.committed, counted.has_ended = completion_tokens, True
    for index, computed_tokens, reason in entry.cut:
        counted = found[ids[index]]
        counted.computed_tokens, counted.cut = computed_tokens, reason


def engine_lives_in(folder: Path) -> list[str]:
    """Return the ids of the engine processes that have left a journal."""
    return sorted({match[1] for path in folder.iterdir() if (match := _PART.fullmatch(path.name))})


def remove_engine_journal(folder: Path, life: str) -> None:
    for path in (*_parts_of(folder, life), _seen_path(folder, life)):
        path.unlink(missing_ok=True)


def _entries(path: Path) -> Iterator[Entry]:
    for _, payload in read_entries(path):
        try:
            yield _decode(payload)
        except msgspec.DecodeError as error:  # the checksum is right, so that the entry is as it was written
            raise newer_usage(path, f"an entry that manylora {__version__} does not know ({error})") from error


def _parts_of(folder: Path, life: str) -> list[Path]:
    return sorted(folder.glob(f"engine-{life}-*.journal"))


def _seen_path(folder: Path, life: str) -> Path:
    return folder / f"engine-{life}.seen"


def _seen(folder: Path, life: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        data = _seen_path(folder, life).read_bytes()
        if len(data) == SEEN.size:
            return int(SEEN.unpack(data)[0])
    return 0
