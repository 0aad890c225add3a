"""The hand-over of counts whose edge is gone to an edge that records them."""

from collections.abc import Mapping
from dataclasses import dataclass

from manylora.clock import Clock
from manylora.fleet.host.counts import CountKeeper
from manylora.fleet.host.hub import EngineHub
from manylora.fleet.host.link import EdgeLink
from manylora.fleet.wire.link_messages import BEAT_S, KeptCounts
from manylora.ids import UsageId

MOST_COUNTS = 500
"""Largest number of counts in one message."""
OFFER_WAIT_S = 4 * BEAT_S
"""Seconds after which an edge with a full disk, say, has its offer made to the next one, too."""


@dataclass(frozen=True, slots=True)
class _Offer:
    """Counts that an edge has been asked to record, in the message of that number."""

    number: int
    ids: list[UsageId]
    sent_s: float


class Handover:
    """Decides when a link's counts have no edge, and offers them to one edge after the other until one has them.

    A link of a broken connection is given up once the engine has ended its requests and its edge has said what it
    recorded, or is gone for `edge_gone_s` seconds. The links of an earlier start of the host have no requests.
    """

    def __init__(self, counts: CountKeeper, hub: EngineHub, clock: Clock, *, host: str, edge_gone_s: float) -> None:
        self._counts = counts
        self._hub = hub
        self._clock = clock
        self._host = host
        self._edge_gone_s = edge_gone_s
        self._earlier = dict.fromkeys(counts.links, clock.monotonic_s())
        self._numbers = 0
        self._offers: dict[EdgeLink, _Offer] = {}  # without an answer

    def resume(self, edge: str, recorded: Mapping[str, int]) -> None:
        """Take what an edge has recorded on links that are gone, its own and those of earlier edges on its disk."""
        gone = {link.name: link for link in self._hub.links if not link.is_open}
        for name, number in recorded.items():
            if name in gone or name in self._earlier:
                self._counts.take(name, number)
        edges = {edge, *(_edge_of(name) for name in recorded)}
        for name in (*gone, *self._earlier):
            if _edge_of(name) in edges:
                if name in gone:
                    gone[name].is_resumed = True
                else:
                    self._earlier[name] = -self._edge_gone_s
        self.tend()

    def tend(self) -> None:
        """Give up the links whose time has come, and offer their counts. Raises `OSError`."""
        now_s = self._clock.monotonic_s()
        for link in tuple(self._hub.links):
            if link.is_open or link.requests:
                continue
            if link.is_resumed or now_s - link.left_s >= self._edge_gone_s:
                self._counts.give_up(link.name)
                self._hub.links.remove(link)
        for name, since_s in tuple(self._earlier.items()):
            if now_s - since_s >= self._edge_gone_s or since_s < 0:
                self._counts.give_up(name)
                del self._earlier[name]
        self._offer()

    def taken(self, link: EdgeLink, number: int) -> None:
        """Drop the counts that an edge has recorded, and offer the next ones. Raises `OSError`."""
        offer = self._offers.get(link)
        if offer is not None and offer.number == number:
            self._counts.settle(offer.ids)
            del self._offers[link]
            self._offer()

    def is_over(self) -> bool:
        """Return whether every count is recorded, or no edge is there to record it."""
        open_links = [link for link in self._hub.links if link.is_open]
        return not open_links or (all(link.is_settled for link in open_links) and not self._counts.orphans)

    def _offer(self) -> None:
        """Offer counts to an edge that owes no answer, unless another one has been asked just now.

        An edge that owes one gets no further offer: it records the first one as soon as it can. Records of two edges
        have the same ids, so that each counts once.
        """
        now_s = self._clock.monotonic_s()
        self._offers = {link: offer for link, offer in self._offers.items() if link.is_open}
        if any(now_s - offer.sent_s < OFFER_WAIT_S for offer in self._offers.values()):
            return
        counts = self._counts.orphans[:MOST_COUNTS]
        link = next((link for link in self._hub.links if link.is_open and link not in self._offers), None)
        if link is None or not counts:
            return
        self._numbers += 1
        self._offers[link] = _Offer(self._numbers, [count.id for count in counts], now_s)
        link.send(KeptCounts(self._numbers, counts))


def _edge_of(link: str) -> str:
    """Return the name of the edge in a link's name: `host-edge-number`."""
    return [*link.split("-"), ""][1]
