"""The rules of a wallet, for every history: nothing is lost, and nothing is spent twice or after its end."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manylora.control.wallet.book import SPENDING, EntryKind, OpenGrant, WalletBook

EDGES = ("a", "b", "c")
AMOUNTS = st.integers(1, 60)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("grant"), AMOUNTS, st.integers(1, 3), st.none() | st.integers(1, 9)),
        st.tuples(st.just("lease"), st.sampled_from(EDGES), AMOUNTS),
        st.tuples(st.just("lease"), st.sampled_from(EDGES), AMOUNTS),
        st.tuples(st.just("settle"), st.sampled_from(EDGES), AMOUNTS),
        st.tuples(st.just("settle"), st.sampled_from(EDGES), AMOUNTS),
        st.tuples(st.just("lapse"), st.sampled_from(EDGES)),
        st.tuples(st.just("withdraw"), AMOUNTS),
        st.tuples(st.just("give_back"), AMOUNTS),
        st.tuples(st.just("wait"), st.integers(1, 4)),
    ),
    max_size=25,
)


@dataclass
class History:
    """A book, its clock and all movements so far. allowed: the spending that no hold and no free credit had."""

    book: WalletBook = field(default_factory=WalletBook)
    now_ms: int = 0
    allowed: int = 0
    num_grants: int = 0
    movements: list[Any] = field(default_factory=list)

    def sum_of(self, *kinds: EntryKind) -> int:
        return sum(each.nanousd for each in self.movements if each.kind in kinds)

    def free(self) -> int:
        return sum(grant.left for grant in self.book.grants) - sum(self.book.holds.values())

    def grant(self, nanousd: int, priority: int, lasts_ms: int | None) -> None:
        self.num_grants += 1
        ends = None if lasts_ms is None else self.now_ms + lasts_ms
        self.book.add(OpenGrant(number=self.num_grants, priority=priority, expires_ms=ends, left=nanousd), self.now_ms)

    def lease(self, edge: str, target: int) -> None:
        """What an edge holds of a grant that has ended is never made more."""
        ended = {grant.number for grant in self.book.grants if grant.has_ended(self.now_ms)}
        before = dict(self.book.holds)
        self.book.hold(edge, target, self.now_ms)
        for (holder, number), amount in self.book.holds.items():
            assert number not in ended or amount <= before.get((holder, number), 0)

    def settle(self, edge: str, cost: int) -> None:
        self.allowed += max(0, cost - self.book.held_by(edge) - self.free())
        self.book.settle(edge, cost, self.now_ms, "row")

    def lapse(self, edge: str) -> None:
        self.book.refresh(self.now_ms, {holder for holder, _ in self.book.holds} - {edge})

    def withdraw(self, nanousd: int) -> None:
        self.allowed += max(0, nanousd - self.free())
        self.book.withdraw(nanousd, self.now_ms, "credit")

    def give_back(self, nanousd: int) -> None:
        if rest := self.book.give_back(nanousd, "row"):
            self.grant(rest, 25, None)

    def wait(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        self.book.refresh(self.now_ms, {holder for holder, _ in self.book.holds})

    def check(self) -> None:
        self.movements += self.book.moved
        self.book.moved = []
        granted, spent, expired = self.sum_of(EntryKind.GRANT), self.sum_of(*SPENDING), self.sum_of(EntryKind.EXPIRE)
        assert granted == spent + expired + self.book.balance
        assert self.book.balance >= -self.allowed
        reserved = self.sum_of(EntryKind.RESERVE) - self.sum_of(EntryKind.RELEASE)
        assert 0 <= sum(self.book.holds.values()) <= reserved
        held: dict[int, int] = defaultdict(int)
        for (_, number), amount in self.book.holds.items():
            assert amount > 0
            held[number] += amount
        for grant in self.book.grants:
            assert held[grant.number] <= grant.left
            if grant.has_ended(self.now_ms):
                assert held[grant.number] == grant.left, "only what edges hold outlives the end"
        assert self.book.overdraft == 0 or self.free() == 0


@settings(max_examples=60, derandomize=True, deadline=None)
@given(steps=STEPS)
def test_grants_are_spends_and_what_expired_and_the_balance(steps: list[tuple[Any, ...]]) -> None:
    history = History()
    for name, *arguments in steps:
        getattr(history, name)(*arguments)
        history.check()


def book_of(*grants: tuple[int, int | None, int]) -> WalletBook:
    """A book of grants: priority, end, amount."""
    book = WalletBook()
    for number, (priority, ends, nanousd) in enumerate(grants, 1):
        book.add(OpenGrant(number=number, priority=priority, expires_ms=ends, left=nanousd), 0)
    book.moved.clear()
    return book


def drawn(book: WalletBook, kind: EntryKind) -> list[tuple[int | None, int]]:
    return [(each.grant, each.nanousd) for each in book.moved if each.kind is kind]


@pytest.mark.parametrize("is_leased", [False, True])
def test_credit_is_drawn_by_priority_then_end_then_age(is_leased: bool) -> None:
    book = book_of((2, 50, 10), (1, None, 10), (1, 90, 10), (1, 70, 10), (1, None, 10))
    if is_leased:
        book.hold("edge", 50, 0)
    book.settle("edge", 50, 0, "row")
    assert drawn(book, EntryKind.SETTLE) == [(4, 10), (3, 10), (2, 10), (5, 10), (1, 10)]


def test_what_a_lease_holds_at_the_end_of_a_grant_is_spent_and_the_rest_expires_at_that_instant() -> None:
    book = book_of((1, 100, 50), (1, None, 50))
    book.hold("edge", 30, 99)
    book.refresh(99, ["edge"])
    assert drawn(book, EntryKind.EXPIRE) == []
    book.refresh(100, ["edge"])
    assert drawn(book, EntryKind.EXPIRE) == [(1, 20)]
    book.settle("edge", 25, 200, "row")
    book.refresh(300, [])
    assert drawn(book, EntryKind.SETTLE) == [(1, 25)]
    assert drawn(book, EntryKind.EXPIRE) == [(1, 20), (1, 5)]
    assert book.balance == 50


def test_new_credit_covers_what_was_owed_first() -> None:
    book = book_of((1, None, 10))
    book.settle("edge", 25, 0, "row")
    assert (book.balance, book.overdraft) == (-15, 15)
    book.add(OpenGrant(number=2, priority=1, expires_ms=None, left=20), 0)
    assert drawn(book, EntryKind.COVER) == [(2, 15)]
    assert book.balance == 5


def test_what_is_given_back_lowers_the_debt_first() -> None:
    book = book_of((1, None, 10))
    book.settle("edge", 25, 0, "row")
    assert book.give_back(10, "row") == 0
    assert book.give_back(10, "row") == 5
    assert book.balance == 0
