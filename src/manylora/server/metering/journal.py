"""The journal of delivered tokens, frame by frame, from which recovery charges the open requests of a killed edge.

    delivered-<edge>-<part>.journal, entries: `Delivery`

The edge writes a frame here before it delivers and acknowledges the frame, so that recorded, delivered and acknowledged
tokens are the same. A journal has parts. Each part begins with all requests without settled usage, so that the edge can
delete older parts.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from manylora import __version__
from manylora.charging import CUTS
from manylora.engine.request import Request
from manylora.ids import PROBE_FLOW, RequestId
from manylora.server.engine_client.messages import StepFrame, UndeliveredCount
from manylora.server.metering.append_log import FramedFile, newer_usage, read_entries, unrecorded
from manylora.server.metering.counted import Counted

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
KEPT_PARTS = 2
MOST_LINKS = 4096
"""Largest number of links of a fleet, the latest ones, whose last frames a journal keeps."""
_PART = re.compile(r"delivered-([0-9a-f]+)-([0-9]{6})\.journal")

Ended = tuple[int, int, int, int, int, str]
Adopt = Callable[[Sequence[UndeliveredCount]], Awaitable[None]]


class Delivery(msgspec.Struct, frozen=True, array_like=True):
    """The counts of one frame.

    opened  (index, request id, prompt tokens, tokens received before) of requests that are new in this file
    tokens  index of the request of each received token
    cached  (index, cached prompt tokens) of requests with their first token in this frame
    ended   (index, prompt tokens, cached tokens, completion tokens, prompt positions computed, reason)
    links   (name, number of the last frame) of links of a fleet
    """

    opened: list[tuple[int, str, int, int]]
    tokens: list[int] = []
    cached: list[tuple[int, int]] = []
    ended: list[Ended] = []
    links: list[tuple[str, int]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Delivery).decode


@dataclass(slots=True)
class _Unsettled:
    """A request whose usage record is not on the disk yet."""

    request_id: RequestId
    prompt_tokens: int
    received: int = 0
    cached_tokens: int | None = None
    end: Ended | None = None


class DeliveryJournal:
    """The journal of one edge and one engine, under the name `edge`.

    While it cannot be written, the edge serves no request of that engine, so that it counts all tokens.
    """

    def __init__(
        self,
        folder: Path,
        edge: str,
        *,
        keeps_parts: bool = False,
        recorded: Mapping[str, int] | None = None,
        adopt: Adopt | None = None,
    ) -> None:
        """Begin the first part. `begin` reports a failure of the disk.

        Args:  recorded  the number of the last frame of each link of a fleet in the journals of earlier edges
               adopt     records counts without an edge; None: there is no fleet
        """
        self.edge = edge
        self.recorded = dict(list((recorded or {}).items())[-MOST_LINKS:])
        self._adopt = adopt
        self._links: dict[str, int] = {}  # those of `recorded` that are in this journal
        self._sole: set[str] = set()  # links without links before them
        self._folder = folder
        self._keeps_parts = keeps_parts
        self._part = -1
        self._unsettled: dict[int, _Unsettled] = {}
        self._indexes: dict[RequestId, int] = {}
        self._new: list[int] = []
        self._file: FramedFile | None = None
        self._failure: OSError | None = None
        """The error of the last write; None after a write without an error."""
        try:
            self._begin_part()
        except OSError as error:
            self._note_failure(error)

    def begin(self, index: int, request: Request) -> None:
        """Note a request, which `write` writes with its first frame. Ignore probes.

        Raises `UsageUnrecorded` while the journal cannot be written; the caller must not send the request then.
        """
        if request.flow == PROBE_FLOW:
            return
        if self._failure is not None:
            self._try_again()
        self._unsettled[index] = _Unsettled(request.id, len(request.tokens))
        self._indexes[request.id] = index
        self._new.append(index)

    def withdraw(self, index: int) -> None:
        """Forget a request that did not reach the engine."""
        if (found := self._unsettled.pop(index, None)) is not None:
            self._indexes.pop(found.request_id, None)

    def settle(self, request_ids: Iterable[RequestId]) -> None:
        """Forget requests with a usage record in the spool, so that later parts do not repeat them."""
        for request_id in request_ids:
            if (index := self._indexes.pop(request_id, None)) is not None:
                self._unsettled.pop(index, None)

    def write(self, frame: StepFrame) -> None:
        """Write a frame before it is delivered.

        Raises `UsageUnrecorded` if that fails; the caller must not deliver the frame then. The journal forgets every
        request, and its earlier entries stay.
        """
        try:
            self._write(frame)
        except OSError as error:
            self._unsettled.clear()
            self._indexes.clear()
            self._new = []
            self._note_failure(error)
            raise unrecorded(error) from error

    def note_link(self, link: str) -> None:
        """Write down that frames of a link may come. Without the entry, its counts wait for `fleet.edge_gone_s`."""
        self._keep_link(link, 0)
        with contextlib.suppress(OSError):
            self._writable().append(_encode(Delivery([], links=[(link, 0)])))

    async def adopt(self, counts: Sequence[UndeliveredCount]) -> None:
        """Record counts of a fleet that have no edge. Raises `UsageUnrecorded`."""
        if self._adopt is not None:
            await self._adopt(counts)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, frame: StepFrame) -> None:
        known = self._unsettled
        if not known:
            return
        file = self._writable()
        opened = self._opened(self._new)
        self._new = []
        counts = Counter(index for index in frame.indexes if index in known)
        for index, count in counts.items():
            known[index].received += count
        cached = []
        for position, details in frame.details.items():
            index = frame.indexes[position]
            if details.cached_tokens and index in known:
                known[index].cached_tokens = details.cached_tokens
                cached.append((index, details.cached_tokens))
        ended = []
        for index, end in frame.finished:
            if index in known:
                c = end.counts
                tokens = (c.prompt_tokens, c.cached_tokens, c.completion_tokens, c.computed_tokens)
                known[index].end = (index, *tokens, end.reason.value)
                ended.append((index, *tokens, end.reason.value))
        if opened or counts or ended:
            links = [(frame.link, frame.number)] if frame.link else []
            file.append(_encode(Delivery(opened, list(counts.elements()), cached, ended, links)))
        if frame.link:
            self._keep_link(frame.link, frame.number)
            if counts and frame.link not in self._sole:
                self._drop_links_before(frame.link)

    def _keep_link(self, link: str, number: int) -> None:
        """Note the last frame of a link, the latest of all, and drop those that are too many."""
        for links in (self.recorded, self._links):
            links.pop(link, None)
            links[link] = number
            while len(links) > MOST_LINKS:
                del links[next(iter(links))]

    def _drop_links_before(self, link: str) -> None:
        """Forget the links of this edge to the same start of a host before a link with counts.

        Before the host sends tokens it writes down, in the same entry, what this edge has recorded on them.
        """
        beginning = link.rpartition("-")[0]
        for links in (self.recorded, self._links):
            for name in tuple(links):
                if name == beginning or (name.startswith(f"{beginning}-") and name != link):
                    del links[name]
        self._sole = {link, *(self._sole & self._links.keys())}

    def _writable(self) -> FramedFile:
        """Return the part to append to. Raises `OSError` if there is none and a new one cannot be opened."""
        if self._file is None:
            return self._begin_part()
        if self._file.size > PART_BYTES:
            with contextlib.suppress(OSError):  # the current part grows until a next one can be opened
                return self._begin_part()
        return self._file

    def _try_again(self) -> None:
        """Try to write after a failure. Raises `UsageUnrecorded` if the write fails again."""
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

    def _opened(self, indexes: Iterable[int]) -> list[tuple[int, str, int, int]]:
        found = ((index, self._unsettled[index]) for index in indexes if index in self._unsettled)
        return [(index, each.request_id, each.prompt_tokens, each.received) for index, each in found]

    def _begin_part(self) -> FramedFile:
        """Open the next part and return it. Raises `OSError` and changes nothing in that case."""
        path = part_path(self._folder, self.edge, self._part + 1)
        file = FramedFile(path)
        try:
            if self._unsettled or self._links:
                known = self._unsettled
                cached = [(index, each.cached_tokens) for index, each in known.items() if each.cached_tokens]
                ended = [each.end for each in known.values() if each.end is not None]
                file.append(_encode(Delivery(self._opened(known), [], cached, ended, list(self._links.items()))))
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
                part_path(self._folder, self.edge, self._part - KEPT_PARTS).unlink()
        return file


def read_journal(folder: Path, edge: str) -> dict[RequestId, Counted]:
    """Return the counts of one edge's requests; requests without received tokens may be absent.

    Raises `DataTooNew` for an entry of a form that this program does not know.
    """
    found: dict[RequestId, Counted] = {}
    ids: dict[int, RequestId] = {}
    for path in parts_of(folder, edge):
        for entry in _entries(path):
            for index, request_id, prompt_tokens, before in entry.opened:
                ids[index] = RequestId(request_id)
                # A part repeats the requests of the part before; `before` has the counts of deleted parts.
                found.setdefault(ids[index], Counted(prompt_tokens, committed=before, delivered=before))
            for index in entry.tokens:
                found[ids[index]].committed += 1
                found[ids[index]].delivered += 1
            for index, cached_tokens in entry.cached:
                found[ids[index]].cached_tokens = cached_tokens
            for ended in entry.ended:
                _note_end(found[ids[ended[0]]], ended)
    return found


def links_in(folder: Path, edge: str) -> dict[str, int]:
    """Return the number of the last frame of each link of a fleet in one edge's journal. Raises as `read_journal`."""
    return {link: number for path in parts_of(folder, edge) for entry in _entries(path) for link, number in entry.links}


def _note_end(counted: Counted, ended: Ended) -> None:
    _, counted.prompt_tokens, counted.cached_tokens, counted.committed, computed_tokens, reason = ended
    counted.has_ended, counted.reason = True, reason
    if reason in CUTS:
        counted.computed_tokens, counted.cut = computed_tokens, reason


def _entries(path: Path) -> Iterator[Delivery]:
    for _, payload in read_entries(path):
        try:
            yield _decode(payload)
        except msgspec.DecodeError as error:  # the checksum is right, so that the entry is as it was written
            raise newer_usage(path, f"an entry that manylora {__version__} does not know ({error})") from error


def journals_in(folder: Path) -> list[str]:
    """Return the ids of all edges that have left a journal."""
    return sorted({match[1] for path in folder.iterdir() if (match := _PART.fullmatch(path.name))})


def parts_of(folder: Path, edge: str) -> list[Path]:
    return sorted(folder.glob(f"delivered-{edge}-*.journal"))


def remove_journal(folder: Path, edge: str) -> None:
    for path in parts_of(folder, edge):
        path.unlink(missing_ok=True)


def part_path(folder: Path, edge: str, part: int) -> Path:
    return folder / f"delivered-{edge}-{part:06d}.journal"
