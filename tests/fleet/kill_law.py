"""The law of kills: the ledger has each token that an engine committed once, but for those that a kill may lose."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import NullPool, create_engine, text

from manylora.bench.faults.counted_engine import read_counts
from manylora.ids import RequestId
from manylora.server.metering.spool import Opened, read_segment, segments_in


@dataclass(frozen=True)
class Row:
    id: str
    request_id: str
    completion_tokens: int
    charged_tokens: int


@dataclass(frozen=True)
class Accounts:
    """Where a fleet's counts are.

    database_url  of the control plane
    edges         each `metering.dir` of the edges, whose journals are kept
    engines       each `metering.dir` of the engines, which count for themselves
    """

    database_url: str
    edges: tuple[Path, ...]
    engines: tuple[Path, ...]

    def rows(self) -> list[Row]:
        """The ledger, from the control plane's own database."""
        engine = create_engine(self.database_url, poolclass=NullPool)
        with engine.connect() as connection:
            found = connection.execute(
                text("SELECT id, request_id, completion_tokens, charged_completion_tokens FROM ledger")
            )
            return [Row(*row) for row in found]

    def recorded(self) -> Counter[RequestId]:
        """The completion tokens of each request of the engines in the ledger."""
        requests: dict[str, RequestId] = {}
        for place in (place for edge in self.edges for place in edge.glob("[0-9]*")):
            for _, path in segments_in(place):
                requests |= {
                    entry.id: entry.requests[0][0] for entry in read_segment(path) if isinstance(entry, Opened)
                }
        found: Counter[RequestId] = Counter()
        for row in self.rows():
            found[requests.get(row.id) or RequestId(row.request_id)] += row.completion_tokens
        return found

    def committed(self) -> tuple[Counter[RequestId], Counter[RequestId]]:
        """The tokens of each request that engines have committed, and those that may be lost with a killed engine.

        A kill may lose the last frame of an engine that has left it, and the one after it.
        """
        committed: Counter[RequestId] = Counter()
        losable: Counter[RequestId] = Counter()
        for place in self.engines:
            for name, count in read_counts(place).items():
                committed[name] += sum(count.frames)
                losable[name] += sum(count.frames[-2:])
        return committed, losable

    def missing(self) -> dict[RequestId, int]:
        """The committed tokens that the ledger lacks, of requests that lack more than a kill may lose."""
        committed, losable = self.committed()
        ledger = self.recorded()
        lost = {name: committed[name] - ledger[name] for name in committed}
        return {name: tokens for name, tokens in lost.items() if tokens > losable[name]}


def assert_accounts(accounts: Accounts, read: Counter[str], most_torn: int) -> None:
    """No token is counted twice, none is lost but with a killed engine, and a caller pays for all that it read.

    Args:  read       the tokens that callers have read, by request
           most_torn  requests that kills may have cut within a frame
    """
    committed, _ = accounts.committed()
    ledger = accounts.recorded()
    assert {name for name in ledger if ledger[name] > committed[name]} == set()
    torn = [name for name in committed if committed[name] > ledger[name]]
    assert len(torn) <= most_torn, torn
    assert unpaid(accounts.rows(), read) == {}


def unpaid(rows: Iterable[Row], read: Counter[str]) -> dict[str, int]:
    """The tokens that callers have read, of requests that are charged for fewer."""
    charged = {row.request_id: row.charged_tokens for row in rows}
    return {name: tokens for name, tokens in read.items() if tokens > charged.get(name, 0)}
