"""The verdict on a run with kills: the counts of engine, edge, ledger and clients, request by request."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from manylora.bench.faults.counted_engine import EngineCount, read_counts
from manylora.ids import RequestId
from manylora.server.metering.counted import Counted
from manylora.server.metering.journal import journals_in, read_journal
from manylora.server.metering.spool import Opened, read_segment, segments_in

NO_COUNT = EngineCount()


@dataclass
class Streams:
    """The load.

    running   streams that have had a token and not ended
    received  events with text that clients have read, by the id of their HTTP request; each stands for a token or more
    statuses  replies by their status
    """

    running: int = 0
    received: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    begun: int = 0
    whole: int = 0
    is_over: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The law of docs/metering.md in numbers. All must be 0, but `most_frames_lost` may be 1.

    difference        the ledger's completion tokens less those in the journals of all edges
    unequal           requests whose ledger row is missing or differs from the journals' counts of the request
    overcounted       requests whose row holds more tokens than their engine counted
    torn              requests that lack tokens of the engine's count, but not whole frames at its end
    undercharged      requests whose client read more than its row charges
    most_frames_lost  frames of one request that its engine had sent and its row lacks
    """

    kills: Mapping[str, int]
    in_mid_stream: int
    requests: int
    unequal: int
    overcounted: int
    torn: int
    undercharged: int
    most_frames_lost: int
    requests_with_a_lost_frame: int
    engine_tokens: int
    journal_tokens: int
    ledger_tokens: int
    charged_tokens: int
    received_tokens: int
    by_reason: Mapping[str, int]

    @property
    def difference(self) -> int:
        return self.ledger_tokens - self.journal_tokens

    @property
    def holds(self) -> bool:
        faults = (self.difference, self.unequal, self.overcounted, self.torn, self.undercharged)
        return not any(faults) and self.most_frames_lost <= 1


@dataclass(frozen=True)
class _Row:
    request_id: str
    completion_tokens: int
    charged_tokens: int
    reason: str


NO_ROW = _Row("", 0, 0, "")


def verdict_of(folder: Path, streams: Streams, kills: Mapping[str, int], in_mid_stream: int) -> Verdict:
    """Compare the counts that the processes of a run have left in `folder`."""
    metering = folder / "metering"
    places = [place for place in metering.iterdir() if place.name.isdigit()]
    journal: dict[RequestId, Counted] = {}
    for place in places:
        for edge in journals_in(place):
            journal |= read_journal(place, edge)
    opened = [
        entry
        for place in places
        for _, path in segments_in(place)
        for entry in read_segment(path)
        if isinstance(entry, Opened)
    ]
    counts = read_counts(metering)
    rows = _rows(folder)
    unequal = 0
    lost: list[int | None] = []
    for entry in opened:
        row = rows.get(entry.id)
        tokens = sum(journal[name].committed for name, _, _ in entry.requests if name in journal)
        unequal += (tokens > 0 or row is not None) and (row is None or row.completion_tokens != tokens)
        (name, *_), *others = entry.requests
        assert not others, "each request of the load has one sequence"
        lost.append(frames_lost(counts.get(name, NO_COUNT), (row or NO_ROW).completion_tokens))
    charged = {row.request_id: row.charged_tokens for row in rows.values()}
    return Verdict(
        kills=kills,
        in_mid_stream=in_mid_stream,
        requests=len(rows),
        unequal=unequal,
        overcounted=sum(found is not None and found < 0 for found in lost),
        torn=lost.count(None),
        undercharged=sum(tokens > charged.get(name, 0) for name, tokens in streams.received.items()),
        most_frames_lost=max((found for found in lost if found is not None), default=0),
        requests_with_a_lost_frame=sum(found is not None and found > 0 for found in lost),
        engine_tokens=sum(sum(count.frames) for count in counts.values()),
        journal_tokens=sum(found.committed for found in journal.values()),
        ledger_tokens=sum(row.completion_tokens for row in rows.values()),
        charged_tokens=sum(row.charged_tokens for row in rows.values()),
        received_tokens=streams.received.total(),
        by_reason=dict(Counter(row.reason for row in rows.values())),
    )


def frames_lost(count: EngineCount, recorded: int) -> int | None:
    """Return the number of frames that the engine has sent and that the record lacks.

    It is -1 for a record with more tokens than the engine counted, and None if the missing tokens are not whole frames
    at the end. A last frame that may not have been sent does not count.
    """
    missing = sum(count.frames) - recorded
    if missing < 0:
        return -1
    num_frames = 0
    for tokens in reversed(count.frames):
        if missing <= 0:
            break
        missing -= tokens
        num_frames += 1
    if missing:
        return None
    return num_frames if count.is_last_sent or not num_frames else num_frames - 1


def _rows(folder: Path) -> dict[str, _Row]:
    with _ledger(folder) as connection:
        found = connection.execute(
            "SELECT id, request_id, completion_tokens, charged_completion_tokens, finish_reason FROM ledger"
        )
        return {row[0]: _Row(*row[1:]) for row in found}


@contextlib.contextmanager
def _ledger(folder: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(folder / "control" / "control.db")
    try:
        yield connection
    finally:
        connection.close()
