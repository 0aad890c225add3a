"""The counts of tokens that no edge has recorded yet, in a journal of the host that survives its kill.

    counts-<part>.journal, entries: `CountsEntry`

The host writes the tokens of a frame here before it acknowledges the frame to its engine. They stay until their edge
acknowledges the frame, or until some edge has recorded them as counts without an edge.
"""

import contextlib
import logging
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import msgspec

from manylora.ids import RequestId, UsageId
from manylora.server.engine_client.messages import UndeliveredCount
from manylora.server.metering.append_log import FramedFile, newer_usage, read_entries

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
_PART = re.compile(r"counts-([0-9]{6})\.journal")


@dataclass(frozen=True, slots=True)
class KeptFrame:
    """The tokens of one frame of one link: the facts of each request, with its number of tokens."""

    link: str
    number: int
    tokens: list[tuple[UndeliveredCount, int]]


class CountsEntry(msgspec.Struct, frozen=True, array_like=True):
    """One change.

    facts   requests that are new in this part, with no tokens
    frames  (link, number, (request id, tokens) of each request)
    taken   (link, number of the last frame that an edge has recorded, or that is given up)
    orphans counts without an edge, from frames that are given up
    settled ids of orphans that an edge has recorded
    """

    facts: list[UndeliveredCount] = []
    frames: list[tuple[str, int, list[tuple[RequestId, int]]]] = []
    taken: list[tuple[str, int]] = []
    orphans: list[UndeliveredCount] = []
    settled: list[UsageId] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(CountsEntry).decode


class CountKeeper:
    """The counts of one host. Raises `OSError` from each method that writes, after which nothing has changed."""

    def __init__(self, folder: Path) -> None:
        """Read what an earlier host has left in the folder, and begin a new part. Raises `OSError`, `DataTooNew`."""
        self._folder = folder
        self._waiting: dict[str, deque[KeptFrame]] = {}
        self._orphans: dict[UsageId, UndeliveredCount] = {}
        self._known: set[RequestId] = set()  # requests with facts in the current part
        self._taken: dict[str, int] = {}  # not written yet
        parts = sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))
        self._read(parts)
        self._part = int(_PART.fullmatch(parts[-1].name)[1]) if parts else -1  # type: ignore[index]  # `parts` match
        self._file = self._begin_part()
        for path in parts:
            path.unlink()

    @property
    def links(self) -> list[str]:
        """The links with counts that no edge has recorded."""
        return [link for link, frames in self._waiting.items() if frames]

    @property
    def orphans(self) -> list[UndeliveredCount]:
        """The counts without an edge."""
        return list(self._orphans.values())

    def keep(self, frames: Sequence[KeptFrame]) -> None:
        """Write the tokens of an engine's frame, divided among the links."""
        file = self._writable()
        facts = {count.request_id: count for frame in frames for count, _ in frame.tokens}
        new = [count for request_id, count in facts.items() if request_id not in self._known]
        written = [(each.link, each.number, [(count.request_id, n) for count, n in each.tokens]) for each in frames]
        file.append(_encode(CountsEntry(new, written, list(self._taken.items()))))
        self._taken.clear()
        self._known |= facts.keys()
        for each in frames:
            self._waiting.setdefault(each.link, deque()).append(each)

    def take(self, link: str, number: int) -> None:
        """Drop the frames up to a number, which their edge has recorded. The next entry notes it."""
        frames = self._waiting.get(link)
        if not frames or frames[0].number > number:
            return
        self._taken[link] = number
        while frames and frames[0].number <= number:
            frames.popleft()
        if not frames:
            del self._waiting[link]

    def give_up(self, link: str) -> None:
        """Turn what is left of a link into counts without an edge, since none of its frames will be recorded."""
        frames = self._waiting.get(link)
        if not frames:
            return
        orphans = _orphans_of(link, frames)
        taken = [*self._taken.items(), (link, frames[-1].number)]
        self._writable().append(_encode(CountsEntry(taken=taken, orphans=orphans)))
        self._taken.clear()
        del self._waiting[link]
        self._orphans |= {count.id: count for count in orphans}

    def settle(self, ids: Iterable[UsageId]) -> None:
        """Drop counts that an edge has recorded."""
        known = [each for each in ids if each in self._orphans]
        self._writable().append(_encode(CountsEntry(settled=known)))
        for each in known:
            del self._orphans[each]

    def forget(self, request_id: RequestId) -> None:
        """Note the end of a request: no further frame has tokens of it."""
        self._known.discard(request_id)

    def require_room(self) -> None:
        """Raise `OSError` unless the disk takes entries."""
        if not self._file.is_whole:
            self._file = self._next_part()
        self._file.require_room()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._taken:
                self._writable().append(_encode(CountsEntry(taken=list(self._taken.items()))))
        self._file.close()

    def _writable(self) -> FramedFile:
        """Return the part to append to; a full or torn one is replaced first, with all that is left."""
        if self._file.size > PART_BYTES or not self._file.is_whole:
            self._file = self._next_part()
        return self._file

    def _facts(self) -> list[UndeliveredCount]:
        waiting = (frame for frames in self._waiting.values() for frame in frames)
        return list({count.request_id: count for frame in waiting for count, _ in frame.tokens}.values())

    def _next_part(self) -> FramedFile:
        before = self._file
        file = self._begin_part()
        before.close()
        with contextlib.suppress(OSError):
            before.path.unlink()
        return file

    def _begin_part(self) -> FramedFile:
        """Write the first entry of the next part, all that is left, and then give the part its name.

        A kill at any moment leaves this part or the one before whole. Raises `OSError` and changes nothing then.
        """
        path = self._folder / f"counts-{self._part + 1:06d}.journal"
        draft = path.with_name(f".{path.name}")
        draft.unlink(missing_ok=True)  # a kill has left it
        file = FramedFile(draft)
        facts = self._facts()
        frames = [
            (each.link, each.number, [(count.request_id, n) for count, n in each.tokens])
            for waiting in self._waiting.values()
            for each in waiting
        ]
        try:
            file.append(_encode(CountsEntry(facts, frames, [], self.orphans)))
            file.rename(path)
        except OSError:
            file.close()
            with contextlib.suppress(OSError):
                file.path.unlink()
            raise
        self._part += 1
        self._known = {count.request_id for count in facts}
        return file

    def _read(self, parts: Sequence[Path]) -> None:
        facts: dict[RequestId, UndeliveredCount] = {}
        for path in parts:
            is_first = True
            for _, payload in read_entries(path):
                try:
                    entry = _decode(payload)
                except msgspec.DecodeError as error:
                    raise newer_usage(path, f"an entry of an unknown form ({error})") from error
                if is_first:  # the entry has all that is left of the part before
                    self._waiting.clear()
                    self._orphans.clear()
                    is_first = False
                facts |= {count.request_id: count for count in entry.facts}
                for link, number, tokens in entry.frames:
                    frame = KeptFrame(link, number, [(facts[request_id], n) for request_id, n in tokens])
                    self._waiting.setdefault(link, deque()).append(frame)
                for link, number in entry.taken:
                    frames = self._waiting.get(link, deque())
                    while frames and frames[0].number <= number:
                        frames.popleft()
                self._orphans |= {count.id: count for count in entry.orphans}
                for each in entry.settled:
                    self._orphans.pop(each, None)


def _orphans_of(link: str, frames: Iterable[KeptFrame]) -> list[UndeliveredCount]:
    """Return one count for each request; its id follows from the link, the request and its first frame."""
    found: dict[RequestId, UndeliveredCount] = {}
    for frame in frames:
        for facts, tokens in frame.tokens:
            known = found.get(facts.request_id)
            if known is None:
                name = f"{link}/{facts.request_id}/{frame.number}"
                usage_id = UsageId(blake2b(name.encode(), digest_size=16).hexdigest())
                known = msgspec.structs.replace(facts, id=usage_id, tokens=0)
            found[facts.request_id] = msgspec.structs.replace(known, tokens=known.tokens + tokens)
    return list(found.values())
