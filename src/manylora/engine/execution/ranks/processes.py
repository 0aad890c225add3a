"""The processes of the ranks 1 to N - 1, which rank 0 starts, commands and ends."""

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass

from manylora.config.environment import child_environment
from manylora.engine.execution.ranks.commands import Command, CommandKind, CommandSocket
from manylora.errors import RankLost, StartupError
from manylora.system.failures import ending

log = logging.getLogger(__name__)

STOP_WAIT_S = 5.0
"""Seconds that a rank has for an orderly end."""
END_WAIT_S = 1.0
"""Seconds in which a rank that has closed its connection is seen to end, so that the error names it."""
LOST_OTHERS = 3
"""Exit code of a rank that ends because it has lost the others: it is not the cause of a loss."""
START_WAIT_S = 600.0
"""Seconds in which a new rank imports its code and checks its share. The time to read weights has no bound."""


@dataclass(frozen=True, slots=True)
class _Rank:
    """One rank: its number, its process, and rank 0's end of the socket to it."""

    number: int
    process: "subprocess.Popen[bytes]"
    socket: CommandSocket


class RankProcesses:
    """The ranks but the first. After the loss of one the others are ended, and every command is dropped.

    Args:  module     the program of a rank: `python -m MODULE SOCKET PARENT`; PARENT is 0 if the thread that starts the
                      ranks may end before them
           size       number of ranks, rank 0 included
           timeout_s  longest wait for a rank that does not take commands
           inherited  open files that each rank has, too, by the same numbers
    Thread: one
    """

    def __init__(self, module: str, size: int, timeout_s: float, inherited: Collection[int] = ()) -> None:
        """Start the processes. Raises: `StartupError`, `OSError`."""
        self.size = size
        self.timeout_s = timeout_s
        self._lost: RankLost | None = None
        self._ranks: list[_Rank] = []
        try:
            for number in range(1, size):
                self._ranks.append(_spawn(module, number, inherited))
        except BaseException:
            self.end()
            raise

    @property
    def num_up(self) -> int:
        """Number of these ranks that live."""
        return sum(rank.process.poll() is None for rank in self._ranks)

    # ── the start ────────────────────────────────────────────────────────────────────────────────────────────────

    def tell_each(self, kind: CommandKind, text_of: Callable[[int], bytes]) -> None:
        """Send each rank a text of the start. A rank that is gone shows in its next reply."""
        for rank in self._ranks:
            try:
                rank.socket.send(Command.of_text(kind, text_of(rank.number)))
            except OSError:
                log.warning("rank.gone_at_start rank=%d", rank.number)

    def replies(self, kind: CommandKind, failure_of: Callable[[bytes], StartupError]) -> list[bytes]:
        """Wait for a reply of that kind from each rank; return the texts by rank.

        Raises: `StartupError` that names the rank: `failure_of` reads the text of one that has failed
        """
        wait_s = None if kind is CommandKind.READY else START_WAIT_S
        return [self._reply(rank, kind, failure_of, wait_s) for rank in self._ranks]

    def failure(self, failure_of: Callable[[bytes], StartupError]) -> StartupError | None:
        """Return the failure of a rank that has ended before the ranks have met, of a cause first; None: all live."""
        ended = [rank for rank in self._ranks if self._code(rank) is not None]
        for rank in sorted(ended, key=lambda each: each.process.returncode == LOST_OTHERS):
            try:
                self._reply(rank, CommandKind.READY, failure_of, END_WAIT_S)
            except StartupError as error:
                return error
        return None

    def _reply(
        self, rank: _Rank, kind: CommandKind, failure_of: Callable[[bytes], StartupError], wait_s: float | None
    ) -> bytes:
        rank.socket.set_timeout(wait_s)
        try:
            reply = rank.socket.receive()
        except OSError as error:
            raise StartupError(f"{self._name(rank)} does not answer: {error}") from error
        if reply is None:
            raise StartupError(f"{self._name(rank)} ended before it was ready{ending(self._code(rank))}")
        if reply.kind is CommandKind.FAILED:
            failure = failure_of(reply.text)
            raise type(failure)(f"{self._name(rank)}: {failure.message}")
        assert reply.kind is kind, f"{self._name(rank)} answers {reply.kind!r}, not {kind!r}"
        rank.socket.set_timeout(self.timeout_s)
        return reply.text

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, command: Command) -> None:
        """Send the same command to all ranks. The next `check` raises the loss of one."""
        for number in range(1, self.size):
            self.send_to(number, command)

    def send_to(self, number: int, command: Command) -> None:
        """Send a command to one rank. The next `check` raises its loss."""
        if self._lost is not None:
            return
        try:
            self._ranks[number - 1].socket.send(command)
        except OSError as error:
            self.lose(f"it does not take commands: {error}")

    def take_beats(self) -> set[int]:
        """Return the ranks whose answer to a beat has come since the last call, without a wait."""
        return {rank.number for rank in self._ranks if self._lost is None and self._has_beaten(rank)}

    def check(self) -> None:
        """Raise `RankLost` if a rank is lost."""
        if self._lost is None and any(rank.process.poll() is not None for rank in self._ranks):
            self.lose("it has ended")
        if self._lost is not None:
            raise self._lost

    def lose(self, why: str, silent_ranks: Collection[int] = ()) -> RankLost:
        """Note the loss of a rank, end all ranks, and return the error of the requests under way.

        `silent_ranks`: those that live and are known to be silent. Without them they are the ranks that have not ended
        where others have.
        """
        if self._lost is None:
            ended = [rank for rank in self._ranks if self._code(rank) is not None]
            causes = [rank for rank in ended if rank.process.returncode != LOST_OTHERS]
            silent = [rank for rank in self._ranks if rank not in ended and (ended or rank.number in silent_ranks)]
            who = ", ".join(self._name(rank) + ending(rank.process.returncode) for rank in causes)
            who = who or ", ".join(f"{self._name(rank)}, which does not answer" for rank in silent)
            who = who or f"one of the {self.size} ranks"
            log.error("rank.lost ranks=%s cause=%s", [rank.number for rank in causes or silent], why)
            self._lost = RankLost(f"the engine has lost {who}; all ranks start anew, repeat the request")
            self.end()
        return self._lost

    def close(self) -> None:
        """Let the ranks end, and end those that do not within `STOP_WAIT_S`."""
        self.send(Command(CommandKind.STOP))
        for rank in self._ranks:
            try:
                rank.process.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                log.warning("rank.killed rank=%d", rank.number)
        self.end()

    def end(self) -> None:
        """End every rank at once. A second call does nothing."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.kill()
            rank.process.wait()
            rank.socket.close()

    def _has_beaten(self, rank: _Rank) -> bool:
        try:
            return rank.socket.has_received() and rank.socket.receive() is not None
        except OSError:
            return False  # it is gone: `check` finds it

    def _name(self, rank: _Rank) -> str:
        return f"rank {rank.number} of {self.size}"

    def _code(self, rank: _Rank) -> int | None:
        """Return the exit code of a rank, for which it may wait a moment; None: it runs."""
        try:
            return rank.process.wait(END_WAIT_S / self.size)
        except subprocess.TimeoutExpired:
            return None


def _spawn(module: str, number: int, inherited: Collection[int]) -> _Rank:
    ours, theirs = socket.socketpair()
    with theirs:
        is_lasting = threading.current_thread() is threading.main_thread()
        parent = os.getpid() if is_lasting else 0
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(parent)],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), *inherited),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    return _Rank(number, process, CommandSocket(ours))
