"""An idle engine finds a rank that does not answer; time moves by hand."""

import fcntl
import resource
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from manylora.clock import ManualClock
from manylora.engine.execution.ranks.commands import Command, CommandKind, CommandSocket
from manylora.engine.execution.ranks.heartbeat import BEAT_S, RankHeartbeat
from manylora.engine.execution.ranks.worker import RankWorker
from manylora.errors import RankLost
from tests.conftest import missing
from tests.engine.execution.ranks.test_processes import STOPPED, Programs


@pytest.fixture
def ranks() -> Iterator[Programs]:
    opened = Programs(STOPPED, STOPPED)
    yield opened
    opened.end()


def beaten(ranks: Programs, *numbers: int) -> None:
    """Let ranks take a beat and answer it."""
    for number in numbers:
        command = ranks.ends[number - 1].receive()
        assert command is not None
        assert command.kind is CommandKind.BEAT
        ranks.ends[number - 1].send(command)


def test_a_rank_that_does_not_answer_is_lost_and_named(ranks: Programs) -> None:
    clock = ManualClock()
    heart = RankHeartbeat(ranks, clock)
    heart.tend()
    assert not any(end.has_received() for end in ranks.ends)
    clock.advance(BEAT_S)
    heart.tend()
    beaten(ranks, 1)
    for _ in range(int(ranks.timeout_s)):
        heart.tend()
        clock.advance(1.0)
    with pytest.raises(RankLost, match="lost rank 2 of 3, which does not answer; all ranks start anew"):
        heart.tend()
    with pytest.raises(RankLost, match="rank 2 of 3"):
        ranks.check()


def test_ranks_that_answer_are_kept_and_get_one_beat_at_a_time(ranks: Programs) -> None:
    clock = ManualClock()
    heart = RankHeartbeat(ranks, clock)
    for _ in range(3):
        clock.advance(BEAT_S)
        heart.tend()
        heart.tend()
        beaten(ranks, 1, 2)
        assert not any(end.has_received() for end in ranks.ends)
        heart.tend()


@pytest.mark.parametrize("is_late", [False, True])
def test_time_without_a_call_counts_for_no_rank(ranks: Programs, is_late: bool) -> None:
    clock = ManualClock()
    heart = RankHeartbeat(ranks, clock)
    clock.advance(BEAT_S)
    heart.tend()
    if not is_late:
        beaten(ranks, 1, 2)
    clock.advance(10 * ranks.timeout_s)  # steps without an idle moment between them, or a frozen machine
    heart.tend()
    if is_late:
        beaten(ranks, 1, 2)
    clock.advance(BEAT_S)
    heart.tend()
    beaten(ranks, 1, 2)
    ranks.check()


def test_a_rank_answers_after_the_commands_before_the_beat() -> None:
    ours, theirs = map(CommandSocket, socket.socketpair())
    nothing = cast(Any, None)  # a beat needs no model
    for kind in (CommandKind.BEAT, CommandKind.STOP):
        ours.send(Command(kind))
    RankWorker(nothing, nothing, nothing, nothing).run(theirs)
    answer = ours.receive()
    assert answer is not None
    assert answer.kind is CommandKind.BEAT
    assert not ours.has_received()
    ours.close()
    assert theirs.receive() is None
    theirs.close()


HIGH = 1024
"""A descriptor beyond those that `select.select` takes; an `LLM` in a program with as many open files has them."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """The limit of open files is above `HIGH`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * HIGH:
        missing(f"a limit of {2 * HIGH} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * HIGH), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_commands_and_the_end_are_seen_at_any_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        high = CommandSocket(socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, HIGH)))
    other = CommandSocket(theirs)
    assert not high.has_received()
    other.send(Command(CommandKind.BEAT))
    assert high.has_received()
    received = high.receive()
    assert received is not None
    assert received.kind is CommandKind.BEAT
    assert not high.has_received()
    other.close()
    assert high.has_received()
    assert high.receive() is None
    high.close()
