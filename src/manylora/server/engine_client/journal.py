"""The engine's own counts, written step by step before the edge hears of them: what a crash leaves to charge by.

One journal a life of the engine, in parts that begin with what is under way, so that old parts can go. The edge keeps
the number of the last frame it has received beside it; tokens in later frames were committed, but reached nobody.
"""

import contextlib
import logging
import os
import re
import secrets
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manylora import __version__
from manylora.charging import CUTS
from manylora.engine.events import StepEvents
from manylora.engine.request import Request
from manylora.ids import PROBE_FLOW, RequestId
from manylora.server.engine_client.append_log import FramedFile, newer_usage, read_entries, unrecorded
from manylora.usage import Counts

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
KEPT_PARTS = 2
SEEN = struct.Struct("<Q")
_PART = re.compile(r"engine-([0-9a-f]{16})-([0-9]{6})\.journal")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What one frame holds, as numbers.

    opened  (index, request id, prompt tokens, tokens committed before): new ones, or at a part's start all under way
    tokens  the index of each committed token's request, one for each token
    ended   (index, prompt tokens, cached tokens, completion tokens)
    cut     (index, prompt positions computed, reason) of those in `ended` whose caller had left; an older version's
            entry has none
    cached  (index, cached tokens) of those whose first token it is, at a part's start of all under way that have one
    """

    number: int
    opened: list[tuple[int, str, int, int]]
    tokens: list[int]
    ended: list[tuple[int, int, int, int]]
    cut: list[tuple[int, int, str]] = []
    cached: list[tuple[int, int]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


@dataclass(slots=True)
class Counted:
    """One request in a journal.

    delivered  tokens in frames that the edge has received
    cut        `disconnect` or `abort` where the engine had ended it because its caller had left, else empty
    """

    prompt_tokens: int
    cached_tokens: int = 0
    computed_tokens: int = 0
    committed: int = 0
    delivered: int = 0
    has_ended: bool = False
    cut: str = ""

    @property
    def counts(self) -> Counts:
        return Counts(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            completion_tokens=self.committed,
            computed_tokens=self.computed_tokens,
        )


@dataclass(slots=True)
class _Open:
    index: int
    prompt_tokens: int
    committed: int = 0
    cached_tokens: int | None = None


class Journal:
    """Written by the engine's process. While it cannot be written, no request is served: nothing goes uncounted."""

    def __init__(self, folder: Path, life: str, *, keeps_parts: bool = False) -> None:
        self._folder = folder
        self._life = life
        self._keeps_parts = keeps_parts
        self._part = -1
        self._number = 0
        self._open: dict[RequestId, _Open] = {}
        self._new: list[RequestId] = []
        self._next_index = 0
        self._file: FramedFile | None = None
        self._failure: OSError | None = None
        """Why the last write failed; None after one that did not."""
        try:
            self._begin_part()
        except OSError as error:
            self._note_failure(error)

    def submit(self, request: Request) -> None:
        """Note a request that the engine is to be handed; it is written with the next frame. Probes are nobody's.

        Raises `UsageUnrecorded` while the journal cannot be written: the engine must not be handed the request.
        """
        if request.flow == PROBE_FLOW:
            return
        if self._failure is not None:
            self._try_again()
        self._open[request.id] = _Open(self._next_index, len(request.tokens))
        self._new.append(request.id)
        self._next_index += 1

    def write(self, number: int, events: StepEvents) -> None:
        """Write what frame `number` is about to tell.

        Raises `UsageUnrecorded` if that fails. The frame must not be told, and every request under way is forgotten.
        """
        self._number = number
        try:
            self._write(number, events)
        except OSError as error:
            self._open.clear()
            self._new = []
            self._note_failure(error)
            raise unrecorded(error) from error

    def _write(self, number: int, events: StepEvents) -> None:
        if not self._open:
            return  # all that is told here is of a request under way
        file = self._writable()
        opened = self._told(self._new)
        self._new = []
        tokens: list[int] = []
        cached: list[tuple[int, int]] = []
        for token in events.tokens:
            if (found := self._open.get(token.request_id)) is not None:
                found.committed += 1
                tokens.append(found.index)
                if token.cached_tokens:
                    found.cached_tokens = token.cached_tokens
                    cached.append((found.index, token.cached_tokens))
        ended, cut = [], []
        for end in events.finished:
            if (found := self._open.pop(end.request_id, None)) is not None:
                counts = end.counts
                ended.append((found.index, counts.prompt_tokens, counts.cached_tokens, counts.completion_tokens))
                if end.reason in CUTS:
                    cut.append((found.index, counts.computed_tokens, end.reason.value))
        if opened or tokens or ended:
            file.append(_encode(Entry(number, opened, tokens, ended, cut, cached)))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _writable(self) -> FramedFile:
        """The part to append to. Raises `OSError` if there is none and none can be begun."""
        if self._file is None:
            return self._begin_part()
        if self._file.size > PART_BYTES:
            with contextlib.suppress(OSError):  # the part before grows beyond its size until a next one can be begun
                return self._begin_part()
        return self._file

    def _try_again(self) -> None:
        """Find out whether a journal that could not be written now can be. Raises `UsageUnrecorded`."""
        try:
            file = self._file if self._file is not None and self._file.is_whole else self._begin_part()
            file.require_room()
        except OSError as error:
            raise unrecorded(error) from error
        log.warning("usage.recorded_again folder=%s", self._folder)
        self._failure = None

    def _note_failure(self, error: OSError) -> None:
        if self._failure is None:
            log.error("usage.unrecorded folder=%s error=%s", self._folder, error.strerror)
        self._failure = error

    def _told(self, ids: Iterable[RequestId]) -> list[tuple[int, str, int, int]]:
        found = ((request_id, self._open[request_id]) for request_id in ids if request_id in self._open)
        return [(each.index, request_id, each.prompt_tokens, each.committed) for request_id, each in found]

    def _begin_part(self) -> FramedFile:
        """Go on in a next part. Raises `OSError` with everything as it was."""
        path = part_path(self._folder, self._life, self._part + 1)
        file = FramedFile(path)
        try:
            if self._part >= 0:
                known = self._open.values()
                cached = [(each.index, each.cached_tokens) for each in known if each.cached_tokens is not None]
                number = max(0, self._number - 1)
                file.append(_encode(Entry(number, self._told(self._open), [], [], [], cached)))
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self.close()
        self._file, self._new = file, []
        self._part += 1
        if not self._keeps_parts and self._failure is None and self._part >= KEPT_PARTS:
            with contextlib.suppress(OSError):
                part_path(self._folder, self._life, self._part - KEPT_PARTS).unlink()
        return file


class SeenFrames:
    """The number of the last frame that the edge has received: eight bytes of a file, whose place is reserved.

    They are written, not mapped: a mapped file kills its process when the disk has no room or loses the file.
    """

    def __init__(self, folder: Path, life: str) -> None:
        """Raises `UsageUnrecorded` if the disk has no place for it."""
        self._number = 0
        self._failure: OSError | None = None
        path = seen_path(folder, life)
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(self._descriptor, 0, SEEN.size)
            except OSError:
                self.close()
                path.unlink()
                raise
        except OSError as error:
            raise unrecorded(error) from error

    def note(self, number: int) -> None:
        """Write it down; a failure is told once, and to `require`."""
        self._number = number
        try:
            self._write()
        except OSError as error:
            if self._failure is None:
                log.error("usage.frame_unrecorded error=%s", error.strerror)
            self._failure = error

    def require(self) -> None:
        """Raises `UsageUnrecorded` if the last number is not written and cannot be."""
        if self._failure is not None:
            try:
                self._write()
            except OSError as error:
                raise unrecorded(error) from error

    def close(self) -> None:
        os.close(self._descriptor)

    def _write(self) -> None:
        os.pwrite(self._descriptor, SEEN.pack(self._number), 0)
        self._failure = None


def read_journal(folder: Path, life: str) -> dict[RequestId, Counted]:
    """The counts of one life of the engine, and how much of them the edge received; empty if it never counted.

    Raises `DataTooNew` for an entry of a form that this program does not know.
    """
    seen = _seen(folder, life)
    found: dict[RequestId, Counted] = {}
    ids: dict[int, RequestId] = {}
    for path in parts_of(folder, life):
        for entry in _entries(path):
            is_seen = entry.number <= seen
            for index, request_id, prompt_tokens, before in entry.opened:
                ids[index] = RequestId(request_id)
                # What an earlier part has told is not told again; where that part is gone it was received long ago.
                found.setdefault(ids[index], Counted(prompt_tokens, committed=before, delivered=before))
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
    return found


def _entries(path: Path) -> Iterator[Entry]:
    for _, payload in read_entries(path):
        try:
            yield _decode(payload)
        except msgspec.DecodeError as error:  # it is as it was written: its checksum says so
            raise newer_usage(path, f"an entry that manylora {__version__} does not know ({error})") from error


def lives_in(folder: Path) -> list[str]:
    """Every life of an engine that left a journal."""
    return sorted({match[1] for path in folder.iterdir() if (match := _PART.fullmatch(path.name))})


def parts_of(folder: Path, life: str) -> list[Path]:
    return sorted(folder.glob(f"engine-{life}-*.journal"))


def remove_journal(folder: Path, life: str) -> None:
    for path in (*parts_of(folder, life), seen_path(folder, life)):
        path.unlink(missing_ok=True)


def mint_life() -> str:
    return secrets.token_hex(8)


def part_path(folder: Path, life: str, part: int) -> Path:
    return folder / f"engine-{life}-{part:06d}.journal"


def seen_path(folder: Path, life: str) -> Path:
    return folder / f"engine-{life}.seen"


def _seen(folder: Path, life: str) -> int:
    with contextlib.suppress(FileNotFoundError):
        data = seen_path(folder, life).read_bytes()
        if len(data) == SEEN.size:
            return int(SEEN.unpack(data)[0])
    return 0
