"""The spool: files of opened requests and finished usage records, until the control plane has them.

    spool-<edge>-<number>.log, entries: Opened, Dropped (no usage after all), Recorded (the whole record)

`Opened` is a write without a sync. `Recorded` is on the disk before the reply ends: one thread writes all records since
its last sync, then syncs. The spool deletes a segment once all its records are shipped and its requests finished.
"""

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manylora import __version__
from manylora.errors import ConfigInvalid, UsageUnrecorded
from manylora.ids import KeyId, RequestId, TenantId, UsageId
from manylora.server.metering.append_log import FramedFile, newer_usage, read_entries, unrecorded
from manylora.system.failures import cause_of
from manylora.system.held_folders import HeldFolder, hold_folder
from manylora.usage import UsageRecord

log = logging.getLogger(__name__)

SEGMENT_BYTES = 8 << 20
RETRY_S = 0.5
FORMAT = 7
"""The format number of the entries in a folder's segments and journals.

A version that writes another form raises the number and still reads the older forms. Older versions refuse its folders
and so misread none.
"""
FORMAT_FILE = "format"
"""The file with the format number. A folder of version 0.1 has no such file and the number 1."""
_SEGMENT = re.compile(r"spool-([0-9a-f]+)-([0-9]{6})\.log")


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The facts of a request before its first token.

    requests  (request id, number of its prompt, prompt tokens) of each sequence
    """

    id: UsageId
    tenant: TenantId
    key: KeyId | None
    request_id: str
    base: str
    adapter: str | None
    adapter_source: str | None
    adapter_owner: TenantId | None
    opened_ms: int
    is_streamed: bool
    life: str
    requests: tuple[tuple[RequestId, int, int], ...]
    is_batch: bool = False
    alias: str | None = None
    is_shadow: bool = False
    deployment: str | None = None


class Dropped(msgspec.Struct, frozen=True, tag=True):
    """The request was refused before it reached the engine."""

    id: UsageId


class Recorded(msgspec.Struct, frozen=True, tag="Finished"):
    """The request has ended; the entry holds its whole record."""

    record: UsageRecord


_Pending = tuple[UsageRecord, asyncio.Future[None]]
SpoolEntry = Opened | Dropped | Recorded
_encode = msgspec.msgpack.Encoder().encode
_decode: msgspec.msgpack.Decoder[SpoolEntry] = msgspec.msgpack.Decoder(SpoolEntry)


@dataclass(slots=True)
class _Segment:
    """One file of the spool.

    durable  bytes known to be on the disk
    cursor   bytes shipped
    open     number of usages opened in it and not finished
    """

    path: Path
    durable: int = 0
    cursor: int = 0
    open: int = 0


class Spool:
    """The segments of one edge. `open`, `drop` and `finish` belong to the event loop; one thread writes the records."""

    def __init__(self, folder: Path, edge: str, *, keeps_segments: bool = False) -> None:
        self._folder = folder
        self._edge = edge
        self._keeps_segments = keeps_segments
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # protects all fields below but those of one thread alone
        self._segments: list[_Segment] = []
        self._where: dict[UsageId, _Segment] = {}
        self._pending: list[_Pending] = []
        self._unwritten: list[_Pending] = []  # of the writer thread, which retries them after a `failure`
        self.failure: UsageUnrecorded | None = None
        """The reason why requests are refused now; None: requests are accepted."""
        self._wake = threading.Event()
        self._is_closing = False
        self._number = 0
        self._is_torn = False  # a reader would not find entries behind a torn one
        self._file = self._begin_segment()
        self._writer = threading.Thread(target=self._write_finished, name="manylora-spool", daemon=True)
        self._writer.start()

    def open(self, opened: Opened) -> None:
        """Write the begin of a request. Raises `UsageUnrecorded`; the caller must not serve the request then."""
        with self._lock:
            if self.failure is not None and self._unwritten:
                raise self.failure
            try:
                self._require_room()
                self._append(_encode(opened))
            except OSError as error:
                raise self._fail(unrecorded(error)) from error
            segment = self._segments[-1]
            segment.open += 1
            self._where[opened.id] = segment

    def drop(self, usage_id: UsageId) -> None:
        with self._lock:
            with contextlib.suppress(OSError):  # without the entry, recovery closes the request at no cost
                self._append(_encode(Dropped(usage_id)))
            self._forget(usage_id)

    def note_failure(self, failure: UsageUnrecorded) -> None:
        """Refuse requests because the journal found the disk full; accept them once the spool finds room again."""
        with self._lock:
            self._fail(failure)

    def finish(self, record: UsageRecord) -> asyncio.Future[None]:
        """Begin to write a record; return a future that is done when the record is on the disk."""
        done: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            self._pending.append((record, done))
        self._wake.set()
        return done

    def unshipped(self, limit: int) -> tuple[list[UsageRecord], list[tuple[Path, int]]]:
        """Return up to `limit` durable records that are not shipped, and their marks for `shipped`."""
        records: list[UsageRecord] = []
        marks: list[tuple[Path, int]] = []
        with self._lock:
            spans = [(segment.path, segment.cursor, segment.durable) for segment in self._segments]
        for path, begin, end in spans:
            mark = begin
            for offset, payload in read_entries(path, begin, end):
                mark = offset
                entry = _decode.decode(payload)
                if isinstance(entry, Recorded):
                    records.append(entry.record)
                    if len(records) >= limit:
                        break
            if mark > begin:
                marks.append((path, mark))
            if len(records) >= limit:
                break
        return records, marks

    def shipped(self, marks: list[tuple[Path, int]]) -> None:
        """Note the records before these marks as shipped, and delete segments without further use."""
        with self._lock:
            for path, offset in marks:
                for segment in self._segments:
                    if segment.path == path:
                        segment.cursor = offset
            for segment in self._segments[:-1]:
                if segment.cursor >= segment.durable and not segment.open and not self._keeps_segments:
                    segment.path.unlink(missing_ok=True)
                    self._segments.remove(segment)

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    def adopt(self, path: Path) -> None:
        """Ship the records of a lost edge's segment, too, and then delete it."""
        with self._lock:
            self._segments.insert(0, _Segment(path, durable=max((end for end, _ in read_entries(path)), default=0)))

    async def close(self) -> list[UsageRecord]:
        """Write the pending records and stop the thread; return the records that the disk did not take."""
        self._is_closing = True
        self._wake.set()
        await asyncio.to_thread(self._writer.join)
        self._file.close()
        return [record for record, _ in (*self._unwritten, *self._pending)]

    def _append(self, payload: bytes) -> None:
        """Append to the last segment, or to a new one if the last has a torn end. The caller holds the lock."""
        if self._is_torn or self._file.size > SEGMENT_BYTES:
            self._file = self._begin_segment()
            self._is_torn = False
        try:
            self._file.append(payload)
        except OSError:
            self._is_torn = not self._file.is_whole
            raise

    def _begin_segment(self) -> FramedFile:
        """Open the next segment, then close the one before; after a failure that one is still open for writing."""
        path = self._folder / f"spool-{self._edge}-{self._number + 1:06d}.log"
        file = FramedFile(path)
        self._number += 1
        if self._segments:
            try:
                self._file.sync()
                self._segments[-1].durable = self._file.size
            except OSError:
                if not self._is_torn:  # else the writer writes its unsynced records anew
                    file.close()
                    path.unlink()
                    raise
            self._file.close()
        self._segments.append(_Segment(path))
        return file

    def _require_room(self, *, is_synced: bool = False) -> None:
        """After a failure, check that the disk takes entries again. Raises `OSError`. The caller holds the lock."""
        if self.failure is None:
            return
        if self._is_torn:
            self._file, self._is_torn = self._begin_segment(), False
        self._file.require_room()
        if is_synced:
            self._file.sync()
        log.warning("usage.recorded_again folder=%s", self._folder)
        self.failure = None

    def _fail(self, failure: UsageUnrecorded) -> UsageUnrecorded:
        """Set the failure, log it if it is the first, and return it. The caller holds the lock."""
        if self.failure is None:
            log.error("usage.unrecorded folder=%s error=%s", self._folder, failure.message)
        self.failure = failure
        self._wake.set()
        return failure

    def _forget(self, usage_id: UsageId) -> None:
        segment = self._where.pop(usage_id, None)
        if segment is not None:
            segment.open -= 1

    def _write_finished(self) -> None:
        """Run the writer thread: write all pending records, sync once, and complete their futures."""
        while True:
            self._wake.wait()
            self._wake.clear()
            while True:
                with self._lock:
                    self._unwritten += self._pending
                    self._pending = []
                is_written = self._write()
                if self._is_closing and (not is_written or not self._pending):
                    return
                if is_written:
                    break
                threading.Event().wait(RETRY_S)

    def _write(self) -> bool:
        """Write and sync the records of `_unwritten` that fit; return whether all of them did."""
        failure: OSError | None = None
        is_unsynced = False
        with self._lock:
            num_written = 0
            try:
                self._require_room(is_synced=True)
                for record, _ in self._unwritten:
                    self._append(_encode(Recorded(record)))
                    num_written += 1
            except OSError as error:
                failure = error
            file, segment, size = self._file, self._segments[-1], self._file.size
        try:
            if num_written:
                file.sync()
        except OSError as error:
            failure, num_written, is_unsynced = error, 0, True
        with self._lock:
            # The system may have dropped unsynced bytes, and reports that only once.
            self._is_torn = self._is_torn or (is_unsynced and file is self._file)
            written, self._unwritten = self._unwritten[:num_written], self._unwritten[num_written:]
            if written:
                segment.durable = max(segment.durable, size)
            for record, _ in written:
                self._forget(record.id)
            if failure is not None:
                self._fail(unrecorded(failure))
        with contextlib.suppress(RuntimeError):  # the loop is closed, and no task waits
            self._loop.call_soon_threadsafe(_complete, [done for _, done in written])
        return failure is None


def hold_folders(root: Path) -> list[HeldFolder]:
    """Lock every folder below `root` that no living server has locked; the first is this server's own.

    The others are of lost servers. Several servers of one machine may share a root. Raises `ConfigInvalid` if the root
    cannot be used, and `DataTooNew` if a newer manylora has left one of the folders.
    """
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        numbers = [int(entry.name) for entry in root.iterdir() if entry.name.isdigit()]
        held = [folder for number in sorted(numbers) if (folder := hold_folder(root / str(number))) is not None]
        number = max(numbers, default=-1)
        while not held:
            number += 1
            held += [folder for folder in [hold_folder(root / str(number))] if folder is not None]
        _keep_formats(held)
    except OSError as error:
        raise ConfigInvalid(f"metering.dir {root} cannot be used: {cause_of(error)}") from error
    return held


def _keep_formats(held: Sequence[HeldFolder]) -> None:
    """Check and mark the formats of folders. Releases all folders before it raises `DataTooNew` or `OSError`."""
    try:
        for folder in held:
            _keep_format(folder.path)
    except BaseException:
        for folder in held:
            folder.release()
        raise


def _keep_format(folder: Path) -> None:
    """Raise `DataTooNew` for a folder of a newer format; mark an older one as of this format. Raises `OSError`."""
    file = folder / FORMAT_FILE
    found = file.read_text(encoding="ascii", errors="replace").strip() if file.exists() else "1"
    if not found.isdecimal() or int(found) > FORMAT:
        raise newer_usage(folder, f"format {found[:20]}; manylora {__version__} knows formats up to {FORMAT}")
    if int(found) < FORMAT:
        whole = file.with_name(f".{FORMAT_FILE}")
        whole.write_text(f"{FORMAT}\n", encoding="ascii")
        whole.replace(file)


def segments_in(folder: Path) -> list[tuple[str, Path]]:
    """Return the segments of all edges in their order, as (edge, path)."""
    found = [(match[1], path) for path in folder.iterdir() if (match := _SEGMENT.fullmatch(path.name))]
    return sorted(found, key=lambda pair: pair[1].name)


def read_segment(path: Path) -> Iterator[SpoolEntry]:
    """Yield every whole entry. Raises `DataTooNew` for an entry of a form that this program does not know."""
    for _, payload in read_entries(path):
        try:
            yield _decode.decode(payload)
        except msgspec.DecodeError as error:  # the checksum is right, so that the entry is as it was written
            raise newer_usage(path, f"an entry that manylora {__version__} does not know ({error})") from error


def _complete(futures: list[asyncio.Future[None]]) -> None:
    for done in futures:
        if not done.done():
            done.set_result(None)
