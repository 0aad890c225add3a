"""The recovery of requests that a lost edge left open: its spool lists them, its journal counts their tokens."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from manylora.charging import SequenceUse, charge_of
from manylora.ids import RequestId, UsageId
from manylora.server.metering import journal
from manylora.server.metering.counted import Counted
from manylora.server.metering.engine_journal import engine_lives_in, read_engine_journal, remove_engine_journal
from manylora.server.metering.records import NO_TIMINGS, record_of
from manylora.server.metering.spool import Dropped, Opened, Recorded, read_segment
from manylora.usage import UsageRecord


@dataclass(frozen=True, slots=True)
class LostRequest:
    """A request without an end.

    edge     the edge that opened it
    opened   its entry in the spool
    counted  the counts of its sequences in the journal
    """

    edge: str
    opened: Opened
    counted: dict[RequestId, Counted]

    def record(self, *, is_kept: bool = False) -> UsageRecord:
        """Return the record with the reason `edge_lost`, but for sequences that ended because their caller had left.

        Args:  is_kept  whether the result of the request is on the disk: its sequences count as they ended
        """
        uses = [
            SequenceUse(
                prompt=prompt,
                prompt_tokens=prompt_tokens,
                cached_tokens=found.cached_tokens,
                committed=found.committed,
                delivered=min(found.delivered, found.committed),
                reason=found.cut or (is_kept and found.reason) or "edge_lost",
                computed_tokens=found.computed_tokens,
            )
            for request_id, prompt, prompt_tokens in self.opened.requests
            for found in [self.counted.get(request_id) or Counted(prompt_tokens)]
        ]
        charge = charge_of(uses, is_streamed=self.opened.is_streamed)
        return record_of(self.opened, self.edge, uses, charge, NO_TIMINGS)


def lost_requests(left: Sequence[tuple[Path, str, Path]]) -> list[LostRequest]:
    """Return the requests without an end in segments of lost edges.

    Args:    left  (folder, edge, segment) of each segment
    Raises:  `DataTooNew`
    """
    opened: dict[UsageId, tuple[Path, str, Opened]] = {}
    ended: set[UsageId] = set()
    for folder, edge, path in left:
        for entry in read_segment(path):
            match entry:
                case Opened():
                    opened[entry.id] = (folder, edge, entry)
                case Dropped(usage_id):
                    ended.add(usage_id)
                case Recorded(record):
                    ended.add(record.id)
    for usage_id in ended:  # after the loop: another edge with earlier files may have ended it
        opened.pop(usage_id, None)
    names = {(folder, entry.life) for folder, _, entry in opened.values()}
    journals = {(folder, name): counts_in(folder, name) for folder, name in names}
    return [LostRequest(edge, entry, journals[folder, entry.life]) for folder, edge, entry in opened.values()]


def counts_in(folder: Path, name: str) -> dict[RequestId, Counted]:
    """Return the counts of the journal that `Opened.life` names: of an edge, or in older formats of an engine."""
    return journal.read_journal(folder, name) if journal.parts_of(folder, name) else read_engine_journal(folder, name)


def recorded_links(folders: Sequence[Path]) -> dict[str, int]:
    """Return the number of the last frame of each link of a fleet in the journals of folders. Raises `DataTooNew`."""
    found: dict[str, int] = {}
    for folder in folders:
        for edge in journal.journals_in(folder):
            found |= journal.links_in(folder, edge)
    return found


def remove_journals(folder: Path, *, but: Collection[str]) -> None:
    """Remove all journals in a folder but those of the names `but`."""
    for edge in journal.journals_in(folder):
        if edge not in but:
            journal.remove_journal(folder, edge)
    for life in engine_lives_in(folder):
        remove_engine_journal(folder, life)
